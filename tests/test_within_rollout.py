"""SFT and RL in one step: which rows and tokens take SFT, in verl's agent loop and replay buffer."""

from __future__ import annotations

import asyncio
import types
from typing import Any

import pytest

from synergy import lab

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
pytestmark = pytest.mark.usefixtures("plugins_importable")


def test_which_rows_stay() -> None:
    from verl_within_rows import Row as Seen
    from verl_within_rows import places

    def seen(*accs: float | None, trace: bool = True, given: int = 0) -> list[Any]:
        return [Seen(acc, acc or 0.1, 5, given, trace) for acc in accs]

    assert places(seen(0, 0, 0), 0.0) == ["sft", "blank", "blank"]
    assert places(seen(0, 0, 1), 0.0) == ["stay"] * 3
    assert places(seen(0, 0, 1), 0.34) == ["sft", "blank", "blank"]
    assert places(seen(0, 0, trace=False), 0.0) == ["stay"] * 2, "nothing to learn from"
    assert places(seen(None, None), 0.0) == ["stay"] * 2, "what could not be judged is not wrong"
    assert places(seen(None, 0), 0.0) == ["sft", "blank"]
    assert places([*seen(None, None, trace=False, given=5), *seen(0, 0, trace=False)], 0.0) == [
        "sft",
        "blank",
        "stay",
        "stay",
    ], "of whole traces the first counts for all; free rollouts stay"
    assert places(seen(0, 0, trace=False, given=3), 0.0) == ["stay"] * 2


def test_a_trace_has_the_positions_that_verl_would_give_it() -> None:
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from verl_within_rows import trace_row

    processor = AutoProcessor.from_pretrained(lab.BASE)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(lab.BASE).model
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>7?<|im_end|>\n<|im_start|>assistant\n"
    found = processor(text=[text], images=[Image.new("RGB", (140, 56))], return_tensors="pt")
    prompt, response, ids = found["input_ids"][0], torch.tensor([30, 31]), [40, 41, 42, 43, 44]

    def positions(sequence: Any) -> Any:
        kinds = (sequence == processor.image_token_id).long()[None]
        three, _ = model.get_rope_index(
            sequence[None], image_grid_thw=found["image_grid_thw"], attention_mask=torch.ones_like(kinds),
            mm_token_type_ids=kinds,
        )  # fmt: skip
        return torch.cat([torch.arange(len(sequence))[None], three[:, 0]])

    whole = torch.cat([prompt, response])
    row = {"prompts": prompt, "responses": response, "input_ids": whole, "position_ids": positions(whole), "uid": "u"}
    made = trace_row(row, ids, copies=4)
    assert torch.equal(made["position_ids"], positions(torch.cat([prompt, torch.tensor(ids)])))
    assert made["input_ids"][-5:].tolist() == ids and made["loss_mask"].tolist() == [4] * 5
    assert not made["response_mask"].any() and row["uid"] == "u"


def test_an_empty_row_is_short_and_has_a_picture_where_others_have() -> None:
    from PIL import Image
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
    from verl_within_rows import EMPTY_TOKENS, empty_row

    processor = AutoProcessor.from_pretrained(lab.BASE)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(lab.BASE)
    text = "<|vision_start|><|image_pad|><|vision_end|>7?"
    found = processor(text=[text], images=[Image.new("RGB", (140, 56))], return_tensors="pt")
    ids = found["input_ids"][0]
    seen = {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"], "images_seqlens": ids[:1]}
    row = {"prompts": ids, "position_ids": torch.zeros(4, len(ids) + 2), "multi_modal_inputs": seen, "uid": "u"}
    made = empty_row(row, {}, 0, model.config)
    assert [len(made[name]) for name in ("input_ids", "prompts", "responses")] == [EMPTY_TOKENS, EMPTY_TOKENS - 1, 1]
    assert (
        made["position_ids"].shape == (4, EMPTY_TOKENS)
        and not made["response_mask"].any()
        and not made["loss_mask"].any()
    )
    pictures = made["multi_modal_inputs"]
    assert pictures.keys() == seen.keys() and pictures["pixel_values"].shape[1] == seen["pixel_values"].shape[1]
    given = {name: pictures[name] for name in ("pixel_values", "image_grid_thw")}
    out = model(input_ids=made["input_ids"][None], position_ids=made["position_ids"][:, None], **given)
    assert out.logits.shape[1] == EMPTY_TOKENS, "as many tokens as the picture has"
    plain = empty_row({**row, "multi_modal_inputs": {}}, {}, 0, model.config)
    assert plain["multi_modal_inputs"] == {} and not (plain["input_ids"] == model.config.image_token_id).any()


class _Loop:
    """What verl's own loop does around its server, on letters."""

    @staticmethod
    async def run(loop: Any, sampling_params: Any, priority: int = 0, **_: Any) -> Any:
        from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

        prompt = await loop.ct_build_initial_tokens([])
        out = await loop.server_manager.generate(prompt_ids=prompt, sampling_params=sampling_params)
        return AgentLoopOutput(
            prompt_ids=prompt, response_ids=out.token_ids, response_mask=[1] * len(out.token_ids),
            response_logprobs=out.log_probs, metrics=AgentLoopMetrics(), extra_fields=dict(out.extra_fields),
        )  # fmt: skip


def test_a_rollout_begins_its_response_with_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
    from verl.workers.rollout.replica import TokenOutput
    from verl_within_rollout import WithinStepAgentLoop

    asked: list[tuple[list[int], dict[str, Any]]] = []

    class Server:
        async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any]) -> TokenOutput:
            asked.append((prompt_ids, sampling_params))
            return TokenOutput(token_ids=[9, 8], log_probs=[-1.0, -2.0])

    async def build(self: Any, *_: Any, **__: Any) -> list[int]:
        return [1, 2]

    monkeypatch.setattr(AgentLoopBase, "ct_build_initial_tokens", build)
    monkeypatch.setattr(SingleTurnAgentLoop, "run", _Loop.run)

    def rollout(session: int = 0, room: int = 6, **info: Any) -> Any:
        loop = object.__new__(WithinStepAgentLoop)
        loop.server_manager, loop.response_length = Server(), room
        words = types.SimpleNamespace(eos_token_id=0, encode=lambda text, add_special_tokens: [ord(c) for c in text])
        loop.tokenizer = words
        return asyncio.run(loop.run({"top_k": 5}, extra_info=info, session_id=session, global_steps=3))

    begun = rollout(prefix="ab", whole=False)
    assert (begun.prompt_ids, begun.response_ids, begun.response_mask) == ([1, 2], [97, 98, 9, 8], [0, 0, 1, 1])
    assert begun.response_logprobs == [0.0, 0.0, -1.0, -2.0] and begun.reward_score is None
    assert asked.pop() == ([1, 2, 97, 98], {"top_k": 5, "max_tokens": 4})
    free = rollout(session=1, prefix="ab", whole=False, prefix_rollouts=1)
    assert (free.response_ids, free.response_mask, asked.pop()) == ([9, 8], [1, 1], ([1, 2], {"top_k": 5}))
    assert begun.extra_fields["prefix"] == free.extra_fields["prefix"] == "", "judged as part of the response"
    whole = rollout(prefix="abc", whole=True)
    assert (whole.prompt_ids, whole.response_ids, whole.response_mask) == ([1, 2], [97, 98, 99, 0], [0] * 4)
    assert whole.reward_score == 0 and whole.extra_fields["min_global_steps"] == 2 and not asked, "nothing is generated"
    with pytest.raises(ValueError, match="no room"):
        rollout(prefix="abcdef", room=6)
