"""From an engine's needs to sizings: what is booked, what the engine is told, what fits. Pure."""

from dataclasses import dataclass, replace
from functools import cached_property

from fleet.sizing.cards import MIB
from fleet.sizing.needs import Needs, Question, Terms, up_to_mib
from fleet.sizing.sizing import Sizing, Workload
from fleet.sizing.terms_custom import Custom
from fleet.sizing.terms_llama_cpp import LlamaCpp
from fleet.sizing.terms_sglang import Sglang
from fleet.sizing.terms_vllm import Vllm

DEFAULT_CONTEXT = {"llama_cpp": 4096}
LONG_CONTEXT = 32_768
"""Where nobody asks for a context, it is the model's own up to this, if one such request fits."""
SHORT_CONTEXT = 8192
"""Else this, or what fits of it."""
_LEAST_DEFAULT = 2048
DEFAULT_CONCURRENCY = 8
"""Where nobody asks for one: so many requests of ``SHORT_CONTEXT`` tokens at most, if they fit."""
_MOST_SLOTS = 64
_GRAIN = 16
"""Tokens: contexts are multiples of a block."""
_HEADROOM = 512 * MIB
"""Booked beyond what already ran out of memory."""
_HEADROOM_SHARE = 0.02


@dataclass(frozen=True)
class Plan:
    """One question with the bytes of a card that may be booked."""

    question: Question
    limit: int
    gpu_layers: int | None = None

    @cached_property
    def needs(self) -> Needs:
        match self.question.engine:
            case "vllm":
                return Vllm(self.question)
            case "sglang":
                return Sglang(self.question)
            case "llama_cpp":
                return LlamaCpp(self.question, self.gpu_layers)
            case _:
                return Custom(self.question)

    def but(self, **changes: object) -> "Plan":
        """The same for a workload with these changes."""
        return replace(self, question=replace(self.question, workload=self._load.model_copy(update=changes)))

    @property
    def _load(self) -> Workload:
        return self.question.workload

    @cached_property
    def most_context(self) -> int:
        return max(self.question.facts.context, self._load.context or 0)

    @cached_property
    def context(self) -> int:
        """As asked, or the default bounded by what fits."""
        if self._load.context is not None:
            return self._load.context
        own = self.question.facts.context or SHORT_CONTEXT
        wanted = min(own, DEFAULT_CONTEXT.get(self.question.engine, LONG_CONTEXT))
        short = min(wanted, SHORT_CONTEXT)
        for context in (wanted, short):
            if self.holds(context):
                return context
        longest = self.longest_context // 1024 * 1024
        return longest if _LEAST_DEFAULT <= longest < short else short

    @cached_property
    def longest_context(self) -> int:
        """For one request with all that may be booked; 0: not even a few tokens."""
        if not self.holds(_GRAIN):
            return 0
        if self.holds(self.most_context):
            return self.most_context
        low, high = 1, self.most_context // _GRAIN
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.holds(middle * _GRAIN) else (low, middle)
        return low * _GRAIN

    def holds(self, context: int, requests: int = 1) -> bool:
        return self.needs.kv(context, requests) <= self.room(context, requests)

    def room(self, context: int, requests: int = 1) -> int:
        """Bytes for the KV cache; negative: not even the rest fits."""
        needs = self.needs
        fixed, outside = sum(needs.fixed(context).values()), sum(needs.outside(context).values())
        if needs.budget is None:
            ram = sum(needs.ram(context, requests).values()) if self.question.on_cpu else 0
            return self.limit // MIB * MIB - fixed - outside - ram
        if self._load.utilization is None:
            return needs.budget.room(self.limit - up_to_mib(outside)) - fixed
        if needs.budget.taken(self._load.utilization) > self.limit:
            return -1
        return int(needs.budget.least * self._load.utilization) - fixed

    def demand(self) -> int:
        """Bytes of KV cache for the asked concurrency, and where none is asked for as much of the default as fits."""
        context, needs = self.context, self.needs
        one = needs.kv(context, 1)
        if self._load.concurrency is not None:
            return needs.kv(context, self._load.concurrency)
        usual = needs.kv(min(context, SHORT_CONTEXT), min(DEFAULT_CONCURRENCY, needs.sequences))
        return max(one, min(usual, self.room(context)))

    def minimum(self) -> Sizing | None:
        if self.needs.static:
            return self.slots(1)
        return self.sizing(self.needs.kv(self.context, 1))

    def asked(self) -> Sizing | None:
        if not self.needs.static:
            return self.sizing(self.demand())
        if self._load.concurrency is not None:
            return self.slots(self._load.concurrency)
        return next((sized for n in range(self.needs.sequences, 0, -1) if (sized := self.slots(n))), None)

    def full_card(self) -> Sizing | None:
        kv, one = self.room(self.context), self.needs.kv(self.context, 1)
        if kv < one:
            return None
        if not self.needs.static:
            return self.sizing(kv if one else 0)
        slots = min(_MOST_SLOTS, kv // one) if one else self.needs.sequences
        return next((sized for n in range(slots, 0, -1) if (sized := self.slots(n))), None)

    def slots(self, count: int) -> Sizing | None:
        """Of an engine that makes its KV cache for so many requests and no more."""
        plan = self if self._load.concurrency == count else self.but(concurrency=count, context=self.context)
        return plan.sizing(plan.needs.kv(plan.context, count))

    def sizing(self, kv: int) -> Sizing | None:
        """With at least ``kv`` bytes of KV cache; None: more than may be booked."""
        if kv > self.room(self.context):
            return None
        terms, share, booked = self._booked(kv)
        short = 0 if self.question.too_big is None else self._beyond(self.question.too_big) - booked
        if short > 0:
            terms, booked = {**terms, "headroom": short}, booked + short
        needs, ram = self.needs, self.needs.ram(self.context, self.needs.sequences)
        total = booked + sum(ram.values()) if self.question.on_cpu else booked
        if total > self.limit:
            return None
        held = terms.get("kv_cache", 0)
        fits = needs.concurrency(held, self.context)
        return Sizing.model_construct(
            shape=self.question.shape,
            gpu_bytes=0 if self.question.on_cpu else booked,
            ram_bytes=up_to_mib(total if self.question.on_cpu else sum(ram.values())),
            terms=terms,
            ram_terms=ram,
            error_bytes=needs.error(terms),
            context=self.context,
            sequences=min(needs.sequences, needs.most_sequences(held, self.context)),
            batched_tokens=needs.batched_tokens,
            kv_bytes=held,
            kv_tokens=int(fits * self.context) if held else 0,
            concurrency=fits,
            utilization=share,
            gpu_layers=self.gpu_layers if self.gpu_layers is not None else self._load.gpu_layers,
            measured=bool(self.question.measured),
        )

    def _booked(self, kv: int) -> tuple[Terms, float | None, int]:
        """(terms that add up to the booking, share that the engine is told, booking)."""
        needs = self.needs
        fixed, outside = needs.fixed(self.context), needs.outside(self.context)
        if needs.budget is None:
            terms = {**fixed, **({"kv_cache": kv} if kv else {}), **outside}
            booked = up_to_mib(sum(terms.values()))
            return {**terms, "rounding": booked - sum(terms.values())}, None, booked
        inside = sum(fixed.values())
        given = self._load.utilization
        share = given if given is not None else needs.budget.share(inside + kv)
        taken = needs.budget.taken(share)
        if given is not None:
            outside = _trimmed(outside, self.limit - taken)
        # The engine makes all that is left of its share its KV cache.
        held = max(kv, int(needs.budget.least * share) - inside) if kv else 0
        booked = taken + up_to_mib(sum(outside.values()))
        terms = {**fixed, **({"kv_cache": held} if held else {}), **outside}
        return {**terms, "rounding": booked - sum(terms.values())}, share, booked

    def _beyond(self, too_big: int) -> int:
        return up_to_mib(max(too_big + _HEADROOM, int(too_big * (1 + _HEADROOM_SHARE))))


def _trimmed(outside: Terms, room: int) -> Terms:
    """A person's own share is taken as it is, and the rest of the card must do for what lies outside."""
    total = sum(outside.values())
    if total <= room:
        return outside
    return {name: size * max(0, room) // total // MIB * MIB for name, size in outside.items()}
