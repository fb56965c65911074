"""`python -m ndt_store` is `ndt`."""

from ndt_store.cli import main

main()
