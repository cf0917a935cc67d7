"""Secateurs cuts a trained network to fit the device it will run on, and proves what the cut did."""

from secateurs._version import __version__
from secateurs.base.errors import (
    ArtifactError,
    BudgetError,
    CaptureError,
    DeviceError,
    InputError,
    PlanError,
    ProofError,
    RecipeError,
    SecateursError,
    TrainError,
    UnknownNameError,
)
from secateurs.base.files import WriteError
from secateurs.capture import Graph, capture
from secateurs.choose import Budget, Plan, choose, compose, plan
from secateurs.cost import Cost, count
from secateurs.couple import ChannelGroup, Groups, couple
from secateurs.cut import CutResult, cut, cut_detailed
from secateurs.cut.compare import Difference
from secateurs.cut.dead import DeadRemoval, remove_dead
from secateurs.cut.handover import HandOver, hand_over
from secateurs.deliver.artifact import load, save
from secateurs.deliver.onnx import export_onnx
from secateurs.deliver.packed import pack, unpack
from secateurs.deliver.semi_structured import SemiStructured, semi_structured
from secateurs.deliver.within import mixed_bits
from secateurs.device import Comparison, Measurement, compare, measure
from secateurs.names import names as list
from secateurs.pack.container import Packed
from secateurs.pack.container import read as read_packed
from secateurs.pack.dc1 import read_dc1
from secateurs.pack.importance import fisher_importance
from secateurs.pack.integers import quantise_weights
from secateurs.pack.ledger import Ledger, ledger
from secateurs.pack.moments import input_moments
from secateurs.pack.quantised import Quantised
from secateurs.pack.shared_model import SharedModel, share_weights
from secateurs.prune import prune
from secateurs.report import figures
from secateurs.report.criteria import CriteriaComparison, compare_criteria
from secateurs.report.result import Result
from secateurs.report.scan import sensitivity
from secateurs.report.sensitivity import Sensitivity
from secateurs.score import score
from secateurs.sparsity.masks import masks
from secateurs.sparsity.regrow import GradientRegrowth, RandomRegrowth
from secateurs.sparsity.schedules import Constant, Gradual, Iterative, OneShot
from secateurs.sparsity.settings import Sparsity
from secateurs.sparsity.simd_matrix import SimdMatrix
from secateurs.sparsity.sparsify import Sparsifier, sparsify
from secateurs.sparsity.surgery import Surgery
from secateurs.sparsity.threshold import Threshold
from secateurs.train.config import FineTune
from secateurs.train.distill import Distill
from secateurs.train.evaluate import accuracy
from secateurs.train.finetune import finetune
from secateurs.train.gates import Gates
from secateurs.train.iterative import IterativePruning, PruneRound, iterative_prune
from secateurs.train.loop import LoopResult, steps, train_prune_loop
from secateurs.train.lottery import Draw, Lottery, lottery
from secateurs.train.node_prune import NodePruning, node_prune
from secateurs.train.optimizer import cut_optimizer
from secateurs.train.penalty import Penalty
from secateurs.train.recalibrate import recalibrate
from secateurs.train.reconstruct import reconstruct
from secateurs.train.scalpel import Scalpel, scalpel
from secateurs.train.scalpel_plan import ScalpelPlan, scalpel_plan
from secateurs.train.soft import Soft
from secateurs.train.soft_prune import SoftPruning, soft_prune
from secateurs.train.sparsify_once import SparsifiedOnce, sparsify_once

__all__ = [
    "ArtifactError", "Budget", "BudgetError", "CaptureError", "ChannelGroup", "Comparison", "Constant", "Cost",
    "CriteriaComparison", "CutResult", "DeadRemoval", "DeviceError", "Difference", "Distill", "Draw", "FineTune",
    "Gates", "GradientRegrowth", "Gradual", "Graph", "Groups", "HandOver", "InputError", "Iterative",
    "IterativePruning", "Ledger", "LoopResult", "Lottery", "Measurement", "NodePruning", "OneShot", "Packed", "Penalty",
    "Plan", "PlanError", "ProofError", "PruneRound", "Quantised", "RandomRegrowth", "RecipeError", "Result", "Scalpel",
    "ScalpelPlan", "SecateursError", "SemiStructured", "Sensitivity", "SharedModel", "SimdMatrix", "Soft",
    "SoftPruning", "SparsifiedOnce", "Sparsifier", "Sparsity", "Surgery", "Threshold", "TrainError", "UnknownNameError",
    "WriteError", "__version__", "accuracy", "capture", "choose", "compare", "compare_criteria", "compose", "count",
    "couple", "cut", "cut_detailed", "cut_optimizer", "export_onnx", "figures", "finetune", "fisher_importance",
    "hand_over", "input_moments", "iterative_prune", "ledger", "list", "load", "lottery", "masks", "measure",
    "mixed_bits", "node_prune", "pack", "plan", "prune", "quantise_weights", "read_dc1", "read_packed", "recalibrate",
    "reconstruct", "remove_dead", "save", "scalpel", "scalpel_plan", "score", "semi_structured", "sensitivity",
    "share_weights", "soft_prune", "sparsify", "sparsify_once", "steps", "train_prune_loop", "unpack",
]  # fmt: skip
