"""The clipped gradient sum: every engine against one-by-one gradients, and the traps of per-person clipping."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sovfed.clients.dpsgd import step as module
from sovfed.clients.dpsgd.step import CLIP_MARGIN, LevelSum, PrivateStep
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.tasks.group_norm import replace_batchnorm
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.simulations.benchmarks.private_step import SETTINGS, Transformer, cnn, mlp

CLIP = 0.7
Batch = tuple[Tensor, Tensor]


class Tied(nn.Module):
    """Embedding and output share their weight, as in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.token(tokens)).mean(1))
        return out


class Keyword(nn.Module):
    """A layer with a parameter of its own that is called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Scaled(), nn.Linear(6, 3)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(self.inner(features, times=3.0))
        return out


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, features: Tensor, times: float = 1.0) -> Tensor:
        return features * self.weight * times


class Padded(nn.Module):
    """Token 0 is padding, whose row gets no gradient: Opacus' rule for embeddings is off by a fifth there."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.token(tokens)).mean(1))
        return out


def floats(*shape: int) -> Callable[[int], Batch]:
    return lambda n: (torch.randn(n, *shape), torch.arange(n) % 3)


def tokens(length: int) -> Callable[[int], Batch]:
    return lambda n: (torch.randint(10, (n, length)), torch.arange(n) % 3)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch]]] = {
    "linear": (lambda: nn.Linear(6, 3), floats(6)),
    "mlp": (lambda: mlp(6, 16, 3), floats(6)),
    "cnn": (cnn, floats(1, 8, 8)),
    "transformer": (lambda: Transformer(1, 12, 2, 10, 5), tokens(5)),
    "tied": (Tied, tokens(4)),
    "keyword": (Keyword, floats(6)),
    "padding": (Padded, tokens(6)),
    "layer norm without bias": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4, bias=False), nn.Linear(4, 3)),
        floats(6),
    ),
    "circular convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Tanh(), nn.Linear(72, 3)
        ),
        floats(1, 6, 6),
    ),
    "frozen part": (
        lambda: nn.Sequential(nn.Linear(6, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3)),
        floats(6),
    ),
}


NEVER = ("keyword", "padding", "layer norm without bias", "circular convolution")  # by Opacus: it is wrong there


def made(name: str, engine: str = "auto", *, several: bool = True, clip: float = CLIP) -> tuple[PrivateStep, nn.Module]:
    torch.manual_seed(1)
    build, batch = MODELS[name]
    built = build()
    return PrivateStep(built, cross_entropy, clip, example=batch(5), several_records=several, engine=engine), built


def flat(built: nn.Module) -> Tensor:
    """The parameters that are trained."""
    return torch.nn.utils.parameters_to_vector(trained(built)).detach().clone()


def trained(built: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in built.parameters() if parameter.requires_grad]


def oracle(name: str, vector: Tensor, features: Tensor, labels: Tensor, persons: Tensor) -> Tensor:
    """Σ over persons of the clipped mean gradient, by plain autograd in float64, one record at a time."""
    torch.manual_seed(1)  # as `made`: what is frozen is the same
    plain = MODELS[name][0]().double()
    torch.nn.utils.vector_to_parameters(vector.double(), trained(plain))
    features = features.double() if features.is_floating_point() else features
    total = torch.zeros(vector.numel(), dtype=torch.float64)
    for person in set(persons.tolist()):
        own = persons == person
        plain.zero_grad()
        losses = torch.cat(
            [cross_entropy(plain(x[None]), y[None]) for x, y in zip(features[own], labels[own], strict=True)]
        )
        losses.mean().backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained(plain)])
        total += gradient * min(1.0, CLIP * (1 - CLIP_MARGIN) / float(gradient.norm()))
    return total


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("engine", ["auto", "vmap", "hooks", "ghost"])
@pytest.mark.parametrize("several", [False, True])
def test_every_engine_agrees_with_gradients_one_by_one_or_refuses(name: str, engine: str, several: bool) -> None:
    try:
        step, built = made(name, engine, several=several)
    except PrivacyError as error:
        assert engine in ("hooks", "ghost")  # auto and vmap do them all
        assert f"engine {engine} is wrong here" in str(error)  # noqa: PT017
        assert name in ("cnn", "transformer", "tied", *NEVER) or several
        return
    vector = flat(built)
    features, labels = MODELS[name][1](11)
    persons = torch.tensor([4, 4, 0, 1, 1, 1, 2, 9, 9, 0, 3]) if several else torch.arange(11)
    assert not (name in NEVER and engine in ("hooks", "ghost"))
    total, used = step.clipped_sum(vector, features, labels, persons)
    expected = oracle(name, vector, features, labels, persons)
    assert total.dtype == torch.float64
    assert used == len(set(persons.tolist()))
    assert float((total - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_engines_chosen_by_themselves(name: str) -> None:
    step, _ = made(name, several=False)
    assert (step.engine, bool(step.reason)) == ("ghost" if name == "mlp" else "vmap", True)
    assert made(name, several=True)[0].engine == "vmap"


@pytest.mark.parametrize("several", [False, True])
def test_pieces_change_nothing_and_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """Also where one person's records lie in several pieces."""
    features, labels = floats(6)(50)
    persons = torch.arange(50) // 12 if several else torch.arange(50)
    step, built = made("mlp", "vmap", several=several)
    vector = flat(built)
    whole, _ = step.clipped_sum(vector, features, labels, persons)
    monkeypatch.setattr(module, "PIECE", 8)
    small, _ = made("mlp", "vmap", several=several)
    parts, used = small.clipped_sum(vector, features, labels, persons)
    assert (small._piece, step._piece) == (8, 64)
    assert used == (5 if several else 50)
    assert float((whole - parts).norm()) < 1e-5


@pytest.mark.parametrize("engine", ["vmap", "hooks", "ghost"])
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "transformer"])
def test_what_a_person_adds_is_the_same_to_the_last_bit_whoever_else_is_there(name: str, engine: str) -> None:
    """So no number of persons can move the others' part; 2^-40 is for adding up in float64."""
    try:
        step, built = made(name, engine, several=False)
    except PrivacyError:
        return
    vector, (features, labels) = flat(built), MODELS[name][1](step._piece + 9)
    alone = [
        step.clipped_sum(vector, features[i : i + 1], labels[i : i + 1], torch.zeros(1))[0] for i in range(len(labels))
    ]
    for count in (1, 2, step._piece, step._piece + 1, step._piece + 9):
        order = torch.randperm(len(labels))[:count]
        total, _ = step.clipped_sum(vector, features[order], labels[order], torch.arange(count))
        assert float((total - torch.stack([alone[i] for i in order.tolist()]).sum(0)).norm()) < 2.0**-40 * CLIP * count
    assert step._piece > 1


def test_a_small_model_is_computed_on_one_thread_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads cut the records where the number of threads says, and vector kernels end there."""
    step, built = made("mlp", "vmap", several=False)
    seen: list[int] = []
    before = torch.get_num_threads()

    def watch(*_: object) -> tuple[list[Tensor], int]:
        seen.append(torch.get_num_threads())
        return [], 0

    monkeypatch.setattr(module, "clip_and_sum", watch)
    torch.set_num_threads(2)
    try:
        step.clipped_sum(flat(built), *MODELS["mlp"][1](3), torch.arange(3))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_where_kernels_mix_records_they_are_computed_one_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    class Shifting(nn.Module):
        """Off by a bit, by the place in the batch: what no trial with a tolerance can find."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, features: Tensor) -> Tensor:
            out: Tensor = self.linear(features) * (1 + 1e-7 * (torch.arange(len(features)) % 7)[:, None])
            return out

    step = PrivateStep(Shifting(), cross_entropy, CLIP, example=floats(6)(5), several_records=False, engine="ghost")
    assert step._piece == 1
    assert "computed one at a time" in caplog.text


def test_sums_of_many_vectors_are_as_exact_as_of_few() -> None:
    """2^17 terms that float64 holds inexactly: added up one by one they are off by 20 times what is allowed here."""
    terms, total = 2**17, LevelSum()
    for _ in range(terms):
        total.add([torch.full((1,), 0.1, dtype=torch.float64)])
    (found,) = total.total()
    assert abs(Fraction(float(found)) - terms * Fraction(0.1)) < Fraction(4 * 256 * terms, 10 * 2**53)
    assert LevelSum().total() == []


@pytest.mark.parametrize("engine", ["vmap", "hooks", "ghost"])
def test_one_person_moves_the_sum_by_the_clip_at_most(engine: str) -> None:
    step, built = made("mlp", engine, several=False)
    features, labels = floats(6)(20)
    features = features * torch.logspace(-3, 6, 20)[:, None]  # gradients of very different size
    vector, persons = flat(built), torch.arange(20)
    total, _ = step.clipped_sum(vector, features, labels, persons)
    moved = []
    for left_out in range(20):
        kept = persons != left_out
        without, _ = step.clipped_sum(vector, features[kept], labels[kept], persons[kept])
        moved.append(float((total - without).norm()))
    assert max(moved) <= CLIP
    assert max(moved) > 0.99 * CLIP  # and the largest gradients are cut to it


@pytest.mark.parametrize("engine", ["vmap", "hooks", "ghost"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_record_without_finite_gradient_is_left_out_alone(engine: str, bad: float) -> None:
    step, built = made("mlp", engine, several=False)
    features, labels = floats(6)(6)
    vector, persons = flat(built), torch.arange(6)
    expected, _ = step.clipped_sum(vector, features[1:], labels[1:], persons[1:])
    features[0, 2] = bad
    total, used = step.clipped_sum(vector, features, labels, persons)
    assert used == 5
    assert torch.allclose(total, expected, atol=1e-6)


@pytest.mark.parametrize("engine", ["vmap", "hooks", "ghost"])
def test_an_empty_sample_gives_zero(engine: str) -> None:
    step, built = made("mlp", engine, several=False)
    features, labels = floats(6)(0)
    total, used = step.clipped_sum(flat(built), features, labels, torch.arange(0))
    assert (used, float(total.abs().sum())) == (0, 0.0)


def weighted_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Class weights that are normalised over the batch: removing one record moves the others' gradients."""
    weights = torch.tensor([1.0, 5.0, 20.0])
    return functional.cross_entropy(logits, labels, weights, reduction="none") / weights[labels].sum()


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels)


def centred(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits - logits.mean(0), labels)


@pytest.mark.parametrize(
    ("loss", "reason"), [(weighted_mean, "depends on the others"), (mean, "has shape"), (centred, "depends")]
)
def test_losses_that_couple_records_are_refused(loss: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason):
        PrivateStep(mlp(6, 8, 3), loss, CLIP, example=floats(6)(5), several_records=False)


class Language(nn.Module):
    """Logits of the next token at each of a record's places, [n, length, tokens]."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.token(tokens)))
        return out


def sentences(n: int) -> Batch:
    """Records of 6 tokens; of record i the last i places are not scored."""
    labels = torch.randint(10, (n, 6))
    for row in range(n):
        labels[row, 6 - row % 5 :] = -100
    return torch.randint(10, (n, 6)), labels


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)


def token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """As language models' `.loss`: over all scored tokens of the batch."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def token_share(logits: Tensor, labels: Tensor) -> Tensor:
    return token_losses(logits, labels) / (labels != -100).sum()


def own_token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    return token_losses(logits, labels) / (labels != -100).sum(1)


@pytest.mark.parametrize(("loss", "reason"), [(token_mean, "has shape"), (token_share, "depends on the others")])
def test_token_means_over_the_batch_are_refused(loss: Callable[[Tensor, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason):
        PrivateStep(Language(), loss, CLIP, example=sentences(5), several_records=False)


def test_a_mean_over_a_record_s_own_tokens_is_clipped_by_record() -> None:
    built = Language()
    step = PrivateStep(built, own_token_mean, CLIP, example=sentences(5), several_records=False)
    features, labels = sentences(9)
    total, _ = step.clipped_sum(flat(built), features, labels, torch.arange(9))
    without, _ = step.clipped_sum(flat(built), features[1:], labels[1:], torch.arange(8))
    alone, _ = step.clipped_sum(flat(built), features[:1], labels[:1], torch.arange(1))
    assert 0 < float(alone.norm()) <= CLIP
    assert torch.allclose(total - without, alone, atol=1e-6)


class Memory(nn.Module):
    """Keeps a running mean of the records in a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, features: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * features.mean(0).detach()
        out: Tensor = self.linear(features)
        return out


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features - features.mean(0))
        return out


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "use GroupNorm"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)), "use GroupNorm"),
        (lambda: nn.Sequential(nn.BatchNorm1d(6).requires_grad_(False).eval(), nn.Linear(6, 3)), "use GroupNorm"),
        (Memory, "changes with the records"),
        (Centred, "depends on the others"),
        (lambda: nn.Linear(6, 3).to(torch.bfloat16), "too coarse"),
        (lambda: nn.Linear(6, 3).requires_grad_(False), "no trainable parameter"),
    ],
)
def test_models_that_cannot_be_made_private_are_refused_with_the_fix(
    build: Callable[[], nn.Module], reason: str
) -> None:
    with pytest.raises(PrivacyError, match=rf"{reason}.*|.*Fix: .*{reason}"):
        PrivateStep(build(), cross_entropy, CLIP, example=floats(6)(5), several_records=False)


def test_batchnorm_replaced_by_groupnorm_can_be_trained() -> None:
    build = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    fixed = replace_batchnorm(build)
    step = PrivateStep(fixed, cross_entropy, CLIP, example=floats(1, 8, 8)(5), several_records=True)
    features, labels = floats(1, 8, 8)(7)
    total, _ = step.clipped_sum(flat(fixed), features, labels, torch.arange(7))
    assert 0 < float(total.norm()) <= 7 * CLIP


def test_dropout_masks_come_from_no_seed_and_leave_the_seeded_generator_alone() -> None:
    build = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    step = PrivateStep(build, cross_entropy, CLIP, example=floats(6)(5), several_records=False)
    features, labels = floats(6)(8)
    found, after = [], []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(step.clipped_sum(flat(build), features, labels, torch.arange(8))[0])
        after.append(torch.rand(3))
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(after[0], after[1])


def test_all_of_the_entropy_decides_on_dropout_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's CPU generator takes 32 bits of a seed: masks that those decided on could be tried out."""
    build = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    step = PrivateStep(build, cross_entropy, CLIP, example=floats(6)(5), several_records=False)
    features, labels = floats(6)(8)
    found = []
    for last in (1, 1, 2):
        monkeypatch.setattr("os.urandom", lambda n, last=last: bytes([7] * (n // 2) + [last] * (n - n // 2)))
        found.append(step.clipped_sum(flat(build), features, labels, torch.arange(8))[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_more_records_of_a_person_than_declared_are_refused() -> None:
    step, built = made("mlp", several=False)
    features, labels = floats(6)(3)
    with pytest.raises(PrivacyError, match="several records"):
        step.clipped_sum(flat(built), features, labels, torch.tensor([0, 1, 1]))


def test_requests_that_do_not_fit_are_refused() -> None:
    step, built = made("mlp")
    features, labels = floats(6)(3)
    with pytest.raises(ConfigError, match="shape"):
        step.clipped_sum(flat(built)[1:], features, labels, torch.arange(3))
    with pytest.raises(ConfigError, match="2 persons"):
        step.clipped_sum(flat(built), features, labels, torch.arange(2))
    with pytest.raises(ConfigError, match="unknown gradient engine 'gost'"):
        made("mlp", "gost")
    with pytest.raises(ConfigError, match="clip is"):
        made("mlp", clip=0.0)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_benchmark_models_are_private_steps(setting: object) -> None:
    found = setting.build()  # type: ignore[attr-defined]
    step = PrivateStep(found, cross_entropy, CLIP, example=setting.batch_of(5), several_records=False)  # type: ignore[attr-defined]
    assert step.parameters == flat(found).numel()


class Room(nn.Module):
    """Has memory for so many records at once."""

    records = 1 << 30

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.records:
            raise torch.OutOfMemoryError(f"{len(x)} records at once")
        return x


def test_where_memory_runs_out_a_private_step_is_refused_and_its_pieces_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How much is free may depend on how many records there are, and a piece's size must not."""
    monkeypatch.setattr(Room, "records", 9)
    with pytest.raises(PrivacyError, match="out of memory on cpu for 64 records at once"):
        PrivateStep(nn.Sequential(Room(), nn.Linear(6, 3)), cross_entropy, CLIP, example=floats(6)(5),
                    several_records=False)  # fmt: skip


def test_no_setting_of_the_process_makes_a_private_step_less_exact() -> None:
    class Asked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(torch.get_float32_matmul_precision())
            return super().forward(x)

    seen: set[str] = set()
    features, labels = floats(6)(8)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # TF32 or bf16 on a GPU, bf16 on some processors
    try:
        step = PrivateStep(Asked(6, 3), cross_entropy, CLIP, example=floats(6)(5), several_records=False)
        seen.clear()
        step.clipped_sum(torch.randn(step.parameters), features, labels, torch.arange(8))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"highest"}
