"""The tiny scale: its questions, its chat template, and the base model as shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reward_fns.accuracy_format import think_then_box
from reward_fns.answer import judge
from synergy.data import records as project_records
from synergy.driver import checkpoint
from synergy.lab import BASE, INSTRUCTION, build, digits, practice

PUBLISHED = ("visual.patch_embed.proj.weight", "visual.merger.mlp.2.weight", "model.embed_tokens.weight")


def test_same_arguments_same_records() -> None:
    one, other = list(digits.questions("train", 50, 3)), list(digits.questions("train", 50, 3))
    assert one == other
    assert one != list(digits.questions("train", 50, 4))
    assert digits.picture(one[0].cells).tobytes() == digits.picture(other[0].cells).tobytes()


def test_no_digit_image_in_two_splits() -> None:
    used = {split: {cell for r in digits.questions(split, 150) for cell in r.cells} for split in digits.SPLITS}
    pools = digits.pools()
    assert sum(map(len, pools.values())) == len(set().union(*pools.values())) == 1797
    for split, cells in used.items():
        assert cells <= set(pools[split])


def arithmetic(line: str) -> bool:
    """Whether `a+b=c` or `a-b=c` is true, a perhaps negative."""
    left, result = line.split("=")
    sign = max(left.rfind("+"), left.rfind("-"))
    first, second = int(left[:sign]), int(left[sign + 1 :])
    return (first + second if left[sign] == "+" else first - second) == int(result)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_trace_reads_the_digits_and_every_line_of_it_is_true(share: float) -> None:
    labels = digits._source()[1]
    for record in digits.questions("val", 200, choice_share=share):
        inner, _, answer = record.trace.removeprefix("<think>\n").partition("\n</think>\n")
        read, *lines = inner.split("\n")
        assert [int(word) for word in read.split()] == [labels[cell] for cell in record.cells] == list(record.digits)
        sums = [line for line in lines if "=" in line]
        assert all(map(arithmetic, sums))
        assert record.steps == 1 + len(sums)
        results = [line.split("=")[1] for line in sums]
        value = results[-1] if results else read.replace(" ", "")
        if record.kind == "pairs":
            value = "".join(result[-1] for result in results)
        assert answer == record.short == f"\\boxed{{{record.answer}}}"
        if record.choices is None:
            assert record.answer == value
        else:
            assert lines[-1] == f"{value} is {record.answer}"
            assert holds(record.choices[record.answer], int(value))
            assert sum(holds(text, int(value)) for text in record.choices.values()) == 1


def holds(option: str, value: int) -> bool:
    """Whether a value is among those that an option's text names."""
    words = option.replace(",", "").split()
    if words[0] == "ends":
        return value % 10 in {int(word) for word in words if word.isdigit()}
    if words[0] in ("less", "more"):
        return value < int(words[2]) if words[0] == "less" else value > int(words[2])
    low, high = int(words[0]), int(words[2])
    return value in (low, high) if words[1] == "or" else low <= value <= high


def test_traces_and_short_answers_are_judged_right() -> None:
    for record in digits.questions("val", 60):
        assert judge(record.trace, record.answer, record.choices).correct
        assert judge(record.short, record.answer, record.choices).correct
        assert think_then_box(record.trace) and not think_then_box(record.short)


def test_written_folder_is_the_projects_format(tmp_path: Path) -> None:
    from PIL import Image

    digits.write(tmp_path, train=12, val=4, bench=6)
    ids: set[str] = set()
    for name, count in (("train", 12), ("val", 4), ("bench_open", 6), ("bench_choice", 6)):
        rows = project_records.read(tmp_path / f"{name}.jsonl")
        assert len(rows) == count
        ids |= {row.id for row in rows}
        without = {row.choices is None for row in rows}
        assert without == {"bench_open": {True}, "bench_choice": {False}}.get(name, {True, False})
        for row in rows:
            picture = Image.open(tmp_path / row.images[0])
            assert picture.size == (140, 28) and picture.mode == "RGB"
    assert len(ids) == 28


def test_lessons_hold_few_long_traces_and_true_drills() -> None:
    taught = list(practice.questions(300, 1))
    assert {instructed for _, instructed, _ in taught} == {True, False}
    reasoned = [(record, instructed) for record, instructed, response in taught if response == record.trace]
    assert reasoned and all(instructed for _, instructed in reasoned)
    long = [record for record, instructed, _ in taught if instructed and record.steps > practice.SHORT_TRACE]
    told = [record for record, _ in reasoned if record.steps > practice.SHORT_TRACE]
    assert 0 < len(told) / len(long) < 2 * practice.LONG_REASONED
    for _, _, response in practice.drills(100, 1):
        assert all(map(arithmetic, response.split("\n")))


def test_data_needs_no_torch() -> None:
    code = "import sys; from synergy.lab import digits, practice, build; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_base_has_published_names_in_float32() -> None:
    tensors = checkpoint.read(BASE)
    assert set(PUBLISHED) <= set(tensors)
    assert all(name.startswith(("visual.", "model.")) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {"F32"}
    assert checkpoint.tied(BASE) and "lm_head.weight" not in tensors
    assert (BASE / "model.safetensors").stat().st_size < 8_000_000


def test_base_is_what_its_manifest_says() -> None:
    assert json.loads((BASE / "MANIFEST.json").read_text()) == build.manifest(BASE)


@pytest.mark.slow
def test_the_build_runs_as_one_and_gives_the_same_weights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps on a part of the rows, and again with the environment of a processor of fewer instructions; the whole takes
    over an hour."""
    monkeypatch.setattr(build, "STEPS", {"pieces": 3, "questions": 3})
    monkeypatch.setattr(build, "ROWS", {"pieces": (96, 96), "questions": (192, 48)})
    monkeypatch.setattr(build.levels, "BENCHMARKS", ("bench_open",))
    base = build.build(tmp_path / "one", 0)
    made = json.loads((base / "MANIFEST.json").read_text())
    assert set(made) == set(build.manifest(BASE)) and made == build.manifest(base)
    assert made["tokenizer.json"] == build.manifest(BASE)["tokenizer.json"], "as shipped"
    assert len(json.loads((base / "levels.json").read_text())) == 120
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    build.teach(tmp_path / "one/random", "pieces", tmp_path / "two", 0)
    monkeypatch.setattr(build, "SUMS", {})
    build.teach(tmp_path / "one/random", "pieces", tmp_path / "loose", 0)
    one, two, loose = (
        build.manifest(tmp_path / name / "pieces")["model.safetensors"] for name in ("one", "two", "loose")
    )
    assert one == two != loose, "without SUMS the processor's own kernels decide"


def test_levels_of_both_benchmarks_are_all_populated() -> None:
    passes = json.loads((BASE / "levels.json").read_text())
    for split in ("bench_open", "bench_choice"):
        levels = [project_records.level(count) for name, count in passes.items() if name.startswith(split)]
        assert len(levels) == 120
        assert set(levels) == {1, 2, 3, 4, 5}


def test_chat_template_renders_what_qwen_renders() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?\n" + INSTRUCTION}]}
    system = "<|im_start|>system\n{}<|im_end|>\n"
    rest = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?\n{INSTRUCTION}<|im_end|>\n"

    def shown(messages: list[dict[str, object]], generate: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    assert shown([user], True) == system.format("You are a helpful assistant.") + rest + "<|im_start|>assistant\n"
    own = {"role": "system", "content": "Be brief."}
    reply = {"role": "assistant", "content": "\\boxed{3}"}
    end = "<|im_start|>assistant\n\\boxed{3}<|im_end|>\n"
    assert shown([own, user, reply], False) == system.format("Be brief.") + rest + end
    for record in digits.questions("val", 20):
        ids = tokenizer(record.trace, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == record.trace and len(ids) <= 72
