"""Layers, losses, optimizers, data and training, built on the tape; imported as ``tapegrad.models``."""

from __future__ import annotations

if __name__ != "tapegrad.models":
    raise ImportError(
        f"this folder is the package tapegrad.models, but it was imported as {__name__!r}; "
        "write `import tapegrad.models` (from a checkout: `pip install -e .` first)"
    )

from tapegrad.models import data, initialization
from tapegrad.models.activations import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from tapegrad.models.clipping import clip_grad_norm_, clip_grad_value_
from tapegrad.models.data import DataLoader, Dataset
from tapegrad.models.layers import Dropout, Flatten, Linear, Sequential
from tapegrad.models.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    l2_penalty,
    mse_loss,
    nll_loss,
    sse_loss,
)
from tapegrad.models.mlp import MLP, summary
from tapegrad.models.module import Module, Parameter
from tapegrad.models.normalization import BatchNorm1d, LayerNorm
from tapegrad.models.optimizer import Optimizer
from tapegrad.models.optimizers import SGD, Adam, AdamW, RMSprop
from tapegrad.models.scaling import GradScaler
from tapegrad.models.schedules import CosineAnnealingLR, ExponentialLR, LinearLR, Schedule, StepLR, WarmupLR
from tapegrad.models.steps import training_step
from tapegrad.models.training import History, accuracy, fit, predict
from tapegrad.models.weights import load_weights, save_weights

__all__ = [
    "ELU",
    "GELU",
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "BatchNorm1d",
    "CosineAnnealingLR",
    "DataLoader",
    "Dataset",
    "Dropout",
    "ExponentialLR",
    "Flatten",
    "GradScaler",
    "History",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LinearLR",
    "LogSoftmax",
    "Module",
    "Optimizer",
    "Parameter",
    "RMSprop",
    "ReLU",
    "Schedule",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "StepLR",
    "Tanh",
    "WarmupLR",
    "accuracy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "clip_grad_norm_",
    "clip_grad_value_",
    "cross_entropy",
    "data",
    "fit",
    "initialization",
    "l1_loss",
    "l2_penalty",
    "load_weights",
    "mse_loss",
    "nll_loss",
    "predict",
    "save_weights",
    "sse_loss",
    "summary",
    "training_step",
]
