"""A leaf is asked in the form it learned."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leaves.serving.chat import render_chat
from leaves.training.preprocess import render


@given(st.text())
def test_a_chat_of_one_message_is_what_training_makes_of_a_prompt(prompt: str) -> None:
    assert render_chat([{"role": "user", "content": prompt}]) == render(prompt)


def test_turns_follow_each_other_and_the_answer_is_begun() -> None:
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {"role": "tool", "content": "three"},
        {"role": "assistant"},
    ]
    assert render_chat(chat) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"
        "<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["system", "user", "assistant", "tool"]),
            st.text(st.sampled_from("<|im_startend>|"), max_size=30),
        )
    )
)
def test_no_text_ends_its_own_turn(turns: list[tuple[str, str]]) -> None:
    text = render_chat([{"role": role, "content": content} for role, content in turns])
    assert text.count("<|im_end|>") == len(turns)
    assert text.count("<|im_start|>") == len(turns) + 1
