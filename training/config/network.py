"""Settings of the adapter: algorithm, rank, targets, dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .layer_rules import parse_patterns, parse_rules
from .refusal import check_kinds, choice, refuse

Targets = Literal["attention", "attention + feed-forward", "all linear", "all", "none"]
Algorithm = Literal["LoRA", "LoHa", "LoKr"]


@dataclass(frozen=True)
class NetworkConfig:
    """The adapter that is trained."""

    rank: int = 16
    """Width of the low-rank bottleneck."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank; 0 means alpha = rank."""
    targets: Targets = "attention + feed-forward"
    """Which layers of the model get an adapter."""
    algorithm: Algorithm = "LoRA"
    """How the change of a weight is composed; LoHa and LoKr need the package lycoris-lora."""
    weight_decompose: bool = False
    """DoRA: the length of every row of a weight is trained apart from its direction."""
    rank_stabilised: bool = False
    """rs-LoRA: scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones."""
    conv_rank: int = 0
    """Rank of convolutions larger than one pixel; 0 takes ``rank``."""
    conv_alpha: float = 0.0
    """Alpha of these convolutions; 0 keeps the ratio of alpha to rank."""
    lokr_factor: int = -1
    """LoKr splits a side of the weight into this number and the rest; -1 splits it as evenly as possible."""
    dropout: float = 0.0
    """Share of the values inside the bottleneck that a step does without; LoRA only."""
    rank_dropout: float = 0.0
    """Share of the ranks that a step does without."""
    module_dropout: float = 0.0
    """Share of the layers whose adapter sits a step out."""
    scale_weight_norms: float = 0.0
    """Largest norm of a layer's change, kept after every step; 0 sets no limit, 1 is a usual one."""
    lora_plus_ratio: float = 1.0
    """LoRA+: the up-matrices learn this many times faster; 16 is usual, 1 switches it off."""
    include: str = ""
    """Patterns of layer names, one a line; if there are any, these layers are trained and ``targets`` is not used."""
    exclude: str = ""
    """Patterns of layer names, one a line, that get no adapter."""
    rules: str = ""
    """Rank, alpha and rate by pattern, one a line: ``double_blocks.0-9.* rank=8 alpha=4 rate=0.5``."""
    start_from: str = ""
    """A LoRA file to go on from, as the host lists it; its layers and ranks are taken over."""

    def __post_init__(self) -> None:
        check_kinds(self)
        refuse(not 1 <= self.rank <= 1024, f"rank: {self.rank} is outside 1 to 1024.")
        refuse(not 0 <= self.alpha <= 1024, f"alpha: {self.alpha} is outside 0 to 1024.")
        choice("targets", self.targets, Targets)
        choice("algorithm", self.algorithm, Algorithm)
        refuse(not 0 <= self.conv_rank <= 1024, f"conv rank: {self.conv_rank} is outside 0 to 1024; 0 takes the rank.")
        refuse(not 0 <= self.conv_alpha <= 1024, f"conv alpha: {self.conv_alpha} is outside 0 to 1024.")
        refuse(self.lokr_factor != -1 and self.lokr_factor < 2, f"LoKr factor: {self.lokr_factor} is neither -1 nor above 1.")
        for widget, share in (
            ("dropout", self.dropout), ("rank dropout", self.rank_dropout), ("module dropout", self.module_dropout),
        ):  # fmt: skip
            refuse(not 0 <= share < 1, f"{widget}: {share} is outside 0 to 0.99.")
        refuse(not 0 <= self.scale_weight_norms <= 1e6, f"scale weight norms: {self.scale_weight_norms} is outside 0 to 1e6.")
        refuse(not 1 <= self.lora_plus_ratio <= 1024, f"LoRA+ ratio: {self.lora_plus_ratio} is outside 1 to 1024; 1 is off.")
        lora_only = {"dropout": self.dropout > 0, "LoRA+ ratio": self.lora_plus_ratio > 1}
        for widget, used in lora_only.items():
            refuse(
                used and self.algorithm != "LoRA",
                f"{widget}: {self.algorithm} has no up-matrix behind a bottleneck to use it on. Switch it off, or choose LoRA.",
            )
        parse_patterns("include", self.include)
        parse_patterns("exclude", self.exclude)
        parse_rules(self.rules)

    @property
    def trains_model(self) -> bool:
        """Whether any layers of the model are named; ``include`` outranks ``targets``, also where these are none."""
        return self.targets != "none" or bool(parse_patterns("include", self.include))

    @property
    def scale(self) -> float:
        """alpha / rank (rs-LoRA: alpha / sqrt(rank)), the factor in front of B(A(x)) in linear layers without a rule."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.rank_stabilised else self.rank)
