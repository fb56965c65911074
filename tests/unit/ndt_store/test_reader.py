"""What open_store shows equals what was written, and what is damaged raises, naming array and block."""

import json

import numpy as np
import pytest
import xarray as xr

from ndt_store import open_store
from ndt_store.errors import FormatVersionError, IntegrityError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store
from ndt_store.traced import part_of

CUBE = "layers/conv1/activations"


@pytest.fixture
def sim(tmp_path):
    return simulate_store(tmp_path / "s.zarr", attention={"attn": (2, 5)})


def test_plain_xarray_opens_the_same_tree_without_our_code(sim):
    plain = xr.open_datatree(sim.store.path, engine="zarr").load()
    xr.testing.assert_identical(plain, sim.store.tree.load())


def test_the_engine_ndt_opens_the_same_tree(sim):
    xr.testing.assert_identical(xr.open_datatree(sim.store.path, engine="ndt").load(), sim.store.tree.load())


def test_every_array_holds_what_was_written(sim):
    for path, expected in sim.arrays.items():
        np.testing.assert_array_equal(sim.store.tree[path].values, expected, err_msg=path)


def test_children_inherit_checkpoint_and_example(sim):
    node = sim.store.tree["layers/conv1"]
    expected = sim.arrays[CUBE][2]
    np.testing.assert_array_equal(node.activations.sel(checkpoint=100).values, expected)
    np.testing.assert_array_equal(node.activations.sel(example=7, checkpoint=100).values, expected[1])


def test_grad_cam_is_one_xarray_expression(sim):
    layer = sim.store["conv1"]
    cam = (layer.gradients.mean(("y", "x")) * layer.activations).sum("unit")
    a, g = sim.arrays[CUBE].astype(np.float64), sim.arrays["layers/conv1/gradients"].astype(np.float64)
    np.testing.assert_allclose(cam.values, np.einsum("ceu,ceuyx->ceyx", g.mean((3, 4)), a), rtol=1e-4, atol=1e-5)


def test_layers_are_lazy_and_labelled(sim):
    layer = sim.store["conv1"]
    assert layer.activations.chunks is not None
    assert layer.label.values.tolist() == [0, 1, 2] * 4
    assert layer.activations.attrs["layer"] == "conv1"


def test_layers_and_tree_know_which_cube_they_show(sim):
    for acts in (sim.store["conv1"].activations, sim.store.tree["layers/conv1"].activations):
        assert part_of(acts.data).blocks.spec.path == CUBE
        assert part_of(acts.sel(checkpoint=100, unit=2).data).dims == ("example", "y", "x")


def test_a_chunk_is_as_many_whole_blocks_as_fit_the_size_asked_for(sim):
    spec = sim.store.schema.find(CUBE)
    row_nbytes = 4 * 6 * 5 * 4
    for chunk_nbytes in (1, 5000, 10_000):
        (checkpoints, examples, *inner) = open_store(sim.store.path, chunk_nbytes=chunk_nbytes)[
            "conv1"
        ].activations.chunks
        assert all(size % spec.rows == 0 for size in examples[:-1])
        assert checkpoints[0] * examples[0] * row_nbytes <= max(chunk_nbytes, spec.rows * row_nbytes)
        assert inner == [(4,), (6,), (5,)]


def test_cube_stacks_layers_and_pads_units_with_nan(sim):
    cube = sim.store.cube("activations", reduce="mean")
    assert cube.dims == ("checkpoint", "layer", "example", "unit")
    conv = cube.sel(layer="conv1")
    np.testing.assert_allclose(conv.values[..., :4], sim.arrays[CUBE].mean((3, 4)), rtol=1e-5)
    assert np.isnan(conv.values[..., 4:]).all()
    np.testing.assert_allclose(cube.sel(layer="fc").values, sim.arrays["layers/fc/activations"], rtol=1e-6)


def test_cube__raises_on_what_it_cannot_do(sim):
    with pytest.raises(InvalidInputError, match="reduce='median'"):
        sim.store.cube(reduce="median")
    with pytest.raises(NotFoundError, match="no attentions with units"):
        sim.store.cube("attentions")


def test_only_committed_checkpoints_are_shown(tmp_path):
    store = simulate_store(tmp_path / "s", n_committed=2).store
    assert store.checkpoints.tolist() == [0, 10]
    assert store["conv1"].activations.sizes["checkpoint"] == 2
    assert not store.is_complete


def test_store_without_any_commit_opens(tmp_path):
    store = simulate_store(tmp_path / "s", n_committed=0).store
    assert store["fc"].activations.shape == (0, 12, 10)
    assert len(store.tree["layers/conv1"].activations) == 0


def test_read_block_gives_the_run_of_examples(sim):
    block = sim.store.read_block(CUBE, 10, 1)
    rows = sim.store.schema.find(CUBE).rows
    np.testing.assert_array_equal(block, sim.arrays[CUBE][1, rows : 2 * rows])


def test_unknown_layer__raises_with_the_close_name(sim):
    with pytest.raises(NotFoundError, match="did you mean 'conv1'"):
        sim.store["conv2"]


def test_unknown_checkpoint__raises_with_the_nearest(sim):
    with pytest.raises(NotFoundError, match="no checkpoint 60: the nearest are 10 and 100"):
        sim.store.require_step(60)


def test_open__raises_where_there_is_no_store(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        open_store(tmp_path / "none")
    with pytest.raises(NotFoundError, match=r"has no zarr\.json"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFoundError, match=r"has no zarr\.json"):
        open_store(tmp_path / "file")
    with pytest.raises(InvalidInputError, match="is a URL"):
        open_store("s3://bucket/run.zarr")


def test_open__raises_on_a_newer_format(sim, tmp_path):
    root = tmp_path / "s.zarr" / "zarr.json"
    content = json.loads(root.read_text())
    content["attributes"]["ndt"]["format_version"] = 2
    root.write_text(json.dumps(content))
    with pytest.raises(FormatVersionError, match="format version 2 and this software reads version 1"):
        open_store(tmp_path / "s.zarr")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_open__raises_on_a_damaged_root(sim, tmp_path, data):
    (tmp_path / "s.zarr" / "zarr.json").write_bytes(data)
    with pytest.raises((IntegrityError, NotFoundError), match="damaged"):
        open_store(tmp_path / "s.zarr")


def test_open__raises_when_schema_and_digest_disagree(sim, tmp_path):
    root = tmp_path / "s.zarr" / "zarr.json"
    root.write_text(root.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(IntegrityError, match="do not match their digest"):
        open_store(tmp_path / "s.zarr")


@pytest.mark.parametrize("codec", ["none", "fast"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes where"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes where"),
        (lambda p: p.write_bytes(b""), "0 bytes where"),
        (lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]), "does not match its checksum"),
    ],
)
def test_a_damaged_block_raises_and_the_others_stay_readable(tmp_path, damage, message, codec):
    sim = simulate_store(tmp_path / "s", codec=codec)
    entry = sim.store.catalogue.record(10).arrays[CUBE].blocks[1]
    damage(tmp_path / "s" / entry.key)
    rows = sim.store.schema.find(CUBE).rows
    lazy = sim.store["conv1"].activations
    with pytest.raises(IntegrityError, match=message) as caught:
        lazy.sel(checkpoint=10).load()
    assert (caught.value.array, caught.value.block) == (CUBE, entry.key)
    assert CUBE in str(caught.value)
    assert entry.key in str(caught.value)
    np.testing.assert_array_equal(lazy.isel(checkpoint=1, example=slice(0, rows)).values, sim.arrays[CUBE][1, :rows])
    np.testing.assert_array_equal(lazy.isel(checkpoint=0).values, sim.arrays[CUBE][0])


def test_a_block_of_another_checkpoint_in_its_place_raises(sim, tmp_path):
    first, second = (sim.store.catalogue.record(step).arrays["layers/fc/activations"].blocks[0] for step in (0, 10))
    moved = (tmp_path / "s.zarr" / second.key).read_bytes()
    (tmp_path / "s.zarr" / first.key).write_bytes(moved)
    with pytest.raises(IntegrityError, match="checksum|bytes where"):
        sim.store["fc"].activations.isel(checkpoint=0).load()


def test_an_all_zero_block_is_told_from_a_missing_one(tmp_path):
    zeros = np.zeros((3, 12, 4, 6, 5), np.float32)
    store = simulate_store(tmp_path / "s", planted={CUBE: zeros}).store
    assert (store["conv1"].activations.values == 0).all()
    (tmp_path / "s" / store.catalogue.record(0).arrays[CUBE].blocks[0].key).unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        store["conv1"].activations.load()


def test_records_that_point_elsewhere_are_refused(sim, tmp_path):
    from ndt_store.layout import canonical_json, digest

    path = tmp_path / "s.zarr" / "commits" / "10.json"
    record = json.loads(path.read_bytes())
    record["arrays"][CUBE]["blocks"][0][0] = "../../etc/passwd"
    del record["digest"]
    path.write_bytes(canonical_json({**record, "digest": digest(record)}))
    with pytest.raises(IntegrityError, match="does not list the blocks"):
        sim.store.refresh()["conv1"].activations.load()


def test_plain_readers_do_not_mind_what_lies_beside_the_arrays(sim, tmp_path):
    import zarr

    root = tmp_path / "s.zarr"
    (root / "lock").write_text("{}")
    (root / "tmp").mkdir()
    (root / "tmp" / "1-1").write_bytes(b"half a block")
    # Warnings are errors here.
    group = zarr.open_group(root, mode="r")
    assert {name for name, _ in group.groups()} == {"layers"}
    xr.testing.assert_identical(xr.open_datatree(root, engine="zarr").load(), sim.store.tree.load())
    one = xr.open_dataset(root, engine="zarr", group="layers/fc", chunks={})
    np.testing.assert_array_equal(one.activations.values, sim.arrays["layers/fc/activations"])


@pytest.mark.parametrize("chunks", [None, {}, {"example": 8}, "auto"])
def test_the_engine_ndt_opens_single_groups_with_any_chunks(sim, chunks):
    opened = xr.open_dataset(sim.store.path, engine="ndt", group="layers/conv1", chunks=chunks)
    assert (opened.activations.chunks is None) == (chunks is None)
    picked = opened.activations.isel(checkpoint=[2, 0], example=[5, 1, 1], y=slice(None, None, -2))
    np.testing.assert_array_equal(picked.values, sim.arrays[CUBE][[2, 0]][:, [5, 1, 1]][:, :, :, ::-2])


def test_lazy_datasets_pickle_for_other_processes(sim):
    import pickle

    for lazy in (sim.store["conv1"], xr.open_dataset(sim.store.path, engine="ndt", group="layers/conv1")):
        copy = pickle.loads(pickle.dumps(lazy))
        np.testing.assert_array_equal(copy.activations.values, sim.arrays[CUBE])


def test_a_reader_that_lists_folders_warns_of_commits_and_reads_on(sim):
    import zarr

    group = zarr.open_group(sim.store.path, mode="r", use_consolidated=False)
    with pytest.warns(UserWarning, match="commits is not recognized"):
        members = dict(group.members())
    np.testing.assert_array_equal(members["loss"][:], sim.arrays["loss"])
