from .ablation import ablate_heads
from .checkpoints import list_checkpoints, load_weights, save_weights, weights_digest
from .data import load_data
from .fields import receptive_fields
from .forecast import Forecast
from .interventions import run_interventions
from .models import build_model, register_model
from .recipe import Recipe, load_recipe
from .run import capture, plan
from .series import Tracking
from .session import Session
from .tracking import Tracker
from .training import train

__all__ = [
    "Forecast",
    "Recipe",
    "Session",
    "Tracker",
    "Tracking",
    "ablate_heads",
    "build_model",
    "capture",
    "list_checkpoints",
    "load_data",
    "load_recipe",
    "load_weights",
    "plan",
    "receptive_fields",
    "register_model",
    "run_interventions",
    "save_weights",
    "train",
    "weights_digest",
]
