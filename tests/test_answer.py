"""The answer checker: what it extracts, what it takes for equal, and that no input costs much or is ever executed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_fns import accuracy_format, checker_pool
from reward_fns.answer import judge
from reward_fns.choices import choice_letter
from reward_fns.equivalence import equivalent
from reward_fns.extraction import extract

ROOT = Path(__file__).resolve().parents[1]
CHOICES = {"A": "12", "B": "15", "C": "1/2", "D": "a red square"}


@pytest.mark.parametrize(
    ("response", "answer", "rule"),
    [
        (r"<think>3 then 4, \boxed{1}</think> So \boxed{7}", "7", "boxed"),
        (r"\boxed{1} and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
        (r"\boxed{\text{set } \{1, 2\}}", r"\text{set } \{1, 2\}", "boxed"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}", "boxed"),
        (r"\boxed{7} or \boxed{8", None, "unbalanced"),
        (r"\boxed{", None, "unbalanced"),
        (r"\boxed{}", None, "empty"),
        (r"<think>so \boxed{7}, but wait", None, "thinking"),
        (r"<think>so \boxed{7}.", "7", "boxed"),
        ("<answer>Two angles, so the answer is 90</answer>", "90", "tag"),
        ("The answer is 4 because of the two lines.", "4", "phrase"),
        ("The answer is:\n\n$$4$$", "4", "phrase"),
        ("Yes, because the two triangles share an angle and two sides.", "Yes", "bare"),
        (r"a</think>b</think>\boxed{2}", "2", "boxed"),
        ("<think>the answer is 3", None, "thinking"),
        ("<think>x</think><answer> 4 </answer>", "4", "tag"),
        ("I think the answer is 5.", "5", "phrase"),
        ("The answer is 3.5. Done.", "3.5", "phrase"),
        ("**Answer:** B", "B", "phrase"),
        ("Answer: (C)\nbecause", "(C)", "phrase"),
        ("42", "42", "bare"),
        ("I am not able to see the picture that you mean.", None, "none"),
        ("", None, "none"),
    ],
)
def test_extracts_the_final_answer(response: str, answer: str | None, rule: str) -> None:
    assert extract(response) == (answer, rule)


def test_a_lone_letter_is_an_answer_only_among_choices() -> None:
    assert extract("B. 15", ("A", "B")) == ("B. 15", "letter")
    assert extract("A long sentence about nothing in particular that has no answer", ("A", "B"))[0] is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("7", "7"), ("7.0", "7"), ("07", "7"), ("+7", "7"), ("−7", "-7"), ("$7$", "7"), (r"\(7\)", "7"), ("7.", "7"),
        ("1,234", "1234"), ("1{,}234", "1234"), (r"\$5", "5"), ("0.5", r"\frac{1}{2}"), ("1/2", r"\dfrac12"),
        ("-1/2", r"-\frac{1}{2}"), (r"\frac{2}{4}", "1/2"), (r"1\frac{1}{2}", "1.5"), (r"-1\frac12", "-3/2"),
        ("50%", "0.5"), ("50", r"50\%"), (r"50\%", "50%"), ("1.2e3", "1200"), (r"1.2 \times 10^{3}", "1200"),
        ("3.14159", "3.14"), ("0.3333", "1/3"), ("7 cm", "7"), (r"30^\circ", "30"), (r"30°", "30"), ("x = 4", "4"),
        (r"\text{Yes}", "yes"), ("A red  square", "a red square"), (r"\text{7}", "7"), ("5 m^2", "5"),
        ("5 km", "5000 m"), ("1 h 30 min", "90 minutes"), ("72 km/h", "20 m/s"), (r"\$12.50", "12.5"), ("50%", "50"),
        ("3 million", "3000000"), (r"0.\overline{3}", "1/3"), ("1 1/2", "3/2"), ("2^{10}", "1024"), ("1½", "1.5"),
        ("x²", "x^2"), (r"5\,cm", "5"), (r"5\,cm", "5 cm"), (r"100\,km", "100"), (r"5\;m/s", "5 m/s"),
        (r"24\,\mathrm{cm^{2}}", "24"), (r"24\,\mathrm{cm^{2}}", "24 cm^2"), (r"9.8\,\mathrm{m/s^{2}}", "9.8"),
        (r"15^\circ \text{ or } 75^\circ", "15,75"), (r"30^\circ\text{ and }60^\circ", r"30^\circ, 60^\circ"),
        (r"24\text{ units}^2", "24"), ("24 units^2", "24"), (r"4\pi\text{ units}^2", r"4\pi"),
        (r"\{2, 1, 1\}", r"\{1, 2\}"), ("2, 1", "1, 2"), ("1, 2", "(1, 2)"), ("1 < x \\le 2", "(1, 2]"),
        ("x > 3", r"(3, \infty)"),
        (r"(3,4) \cup (1,2)", r"(1,2) \cup (3,4)"), ("y = 3, x = 5", "x=5, y=3"), ("Yes, it is.", "yes"),
        ("x = 1 or x = 2", "2, 1"),
        (r"\approx 12.5", "12.5"), ("≈ 12.5", "12.5"), ("12.5", r"\approx 12.5"), ("P(0, 5)", "(0,5)"), ("(0,5)", "P(0,5)"),
        ("10:30 AM", "10:30"), ("10:30", "10:30 a.m."), ("22:30", "10:30 PM"), ("12:15 AM", "0:15"), ("10:30 pm", "10:30"),
    ],
)  # fmt: skip
def test_equal_without_algebra(answer: str, gold: str) -> None:
    assert equivalent(answer, gold, thorough=False)[0], equivalent(answer, gold, thorough=False)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("7", "8"), ("7x", "7"), ("1 2", "12"), ("0.33", "1/3"), ("3.1", "3.14"), ("7.004", "7"), ("70", "7"),
        ("-7", "7"), ("", "7"), ("yes", "no"), ("7", "seven"), ("1/0", "1"), ("500%", "0.5"), ("3, 4", "34"),
        ("0.5", "0.05"),
        ("12 cm", "12 m"), ("12 apples", "12 oranges"), ("30 euros", r"\$30"), ("0.5", "50"), ("0.5%", "0.5"),
        ("0.13", "1/8"), ("[1, 2]", "(1, 2)"),
        ("(2, 1)", "(1, 2)"), (r"\{1, 2\}", "(1, 2)"), ("1, 2, 3", "1, 2"), ("y = 5", "x = 5"),
        ("a < 4", "b < 4"), ("Yes", "No, it is not"), ("24 units^2", "24 cm^2"), (r"5\,cm", "5 m"),
        (".", "0"), ("1e999", "1"), ("-", "0"), ("/", "1"),
        ("P(0, 4)", "(0,5)"), ("P(0,5)", "Q(0,5)"), ("f(0,5)", "(0,5)"), (r"\approx 12", "12.5"),
        ("10:30", "10:30 PM"), ("10:30 PM", "10:30 AM"), ("10:31 AM", "10:30"), ("12:15 AM", "12:15 PM"),
    ],
)  # fmt: skip
def test_different(answer: str, gold: str) -> None:
    assert not equivalent(answer, gold)[0]


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"2\pi", r"\pi \cdot 2", True),
        (r"x^2+2x+1", r"(x+1)^2", True),
        (r"(1, 2)", r"(2, 1)", False),
        (r"\sqrt{3}", r"\sqrt{2}", False),
        (r"\frac{\pi}{", r"\pi", False),
        ("sqrt(2)/2", r"\frac{1}{\sqrt{2}}", True),
        (r"2\ln x", r"\ln x^2", True),
        (r"\sqrt{x^2}", "x", False),
        (r"\cos 60^\circ + x", r"x+\frac{1}{2}", True),
        ("1/i", "-i", True),
        ("2ab(3a-2)", "6a^2b-4ab", True),
        ("3.4641", r"2\sqrt{3}", True),
        ("3.46", r"2\sqrt{3}+0.01", False),
        (r"\frac{1}{3}+10^{-60}", "1/3", False),
        ("y - 2x = 1", "y = 2x+1", True),
        ("2y - 4x = 1", "y = 2x+1", False),
        (r"\begin{bmatrix} 1 & \frac{2}{4} \\ 0 & 1 \end{bmatrix}", r"\begin{pmatrix}1&0.5\\0&1\end{pmatrix}", True),
        (r"\pm\sqrt{2}", r"\{-\sqrt{2},\sqrt{2}\}", True),
        (r"36\pi \text{ cubic centimeters}", r"36\pi\text{ cm}^3", True),
        (r"36\pi \text{ cm}^2", r"36\pi\text{ cm}^3", False),
    ],
)
def test_algebra(answer: str, gold: str, equal: bool) -> None:
    assert equivalent(answer, gold)[0] == equal


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B. 15", "B"), ("(B) 15", "B"), (r"\text{B}", "B"), ("option B", "B"),
        ("15", "B"), ("15.0", "B"), ("0.5", "C"), (r"\frac12", "C"), ("A red square", "D"), ("D: a red square", "D"),
        ("A dog", None), ("b", "B"), ("A, B", None), ("B. 12", None), ("A) 12 B) 15", None), ("A or B", None),
        ("the correct option is C", "C"), ("E", None), ("16", None),
        ("B (15)", "B"), ("B - 15", "B"), ("15 (B)", "B"), ("B (12)", None), ("12 (B)", None), ("B (or C)", None),
    ],
)  # fmt: skip
def test_choices_by_letter_or_text(answer: str, letter: str | None) -> None:
    assert choice_letter(answer, CHOICES) == letter


@pytest.mark.parametrize("answer", ["B (3, 4)", "B. (3, 4)", "B - (3, 4)", "(3, 4) (B)"])
def test_brackets_of_a_choice_are_its_own(answer: str) -> None:
    assert choice_letter(answer, {"A": "(1, 2)", "B": "(3, 4)", "C": r"(1,2) \cup (3,4)"}) == "B"
    assert choice_letter(answer.replace("(3, 4)", r"(1,2) \cup (3,4)").replace("B", "C"),
                         {"A": "(1, 2)", "B": "(3, 4)", "C": r"(1,2) \cup (3,4)"}) == "C"  # fmt: skip


def test_judges_choices_by_the_letter_that_both_stand_for() -> None:
    assert judge(r"<think>.</think>\boxed{15}", "B", CHOICES).correct
    assert judge(r"\boxed{B. 15}", "15", CHOICES).correct
    verdict = judge("I choose. The answer is (C).", "B", CHOICES)
    assert (verdict.correct, verdict.answer, verdict.rule) == (False, "C", "phrase/choice")
    assert not judge(r"\boxed{16}", "B", CHOICES).correct


HOSTILE = [
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{" + "9" * 5000 + "}",
    r"\boxed{100000000!}",
    r"\boxed{2^{99999999}}",
    r"\boxed{" * 20_000,
    "{" * 300_000,
    r"\boxed{" + "(" * 250 + "}",
    "answer is " * 50_000,
    "<think>" * 50_000,
    "<answer>" * 40_000,
    "$" * 300_000,
    r"\boxed{\text{" + "a " * 400 + "}}",
    "\x00\ud800 \boxed{7}",
    r"\boxed{__import__('os').system('touch pwned')}",
    r"\boxed{$\sum_{n=1}^{10^{9}} n$}",
]


@pytest.mark.parametrize("response", HOSTILE, ids=lambda text: text[:18].encode("unicode_escape").decode())
def test_hostile_input_is_wrong_and_cheap(response: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checker_pool.warm()  # the start of the children is no part of the time below
    start = time.monotonic()
    assert not judge(response, r"\sqrt{2}").correct
    assert time.monotonic() - start < 20, "2 s of processor time, on a machine that may be busy"
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(120)
def test_a_constant_of_a_billion_digits_is_never_written_out() -> None:
    for constant in (r"\frac{52!}{(26!)^2}\cdot 10^{9}!", r"\frac{1}{(10^{9}!)}", r"\frac{1}{2}\cdot 10^{1000}"):
        assert not equivalent(constant, "0.142857")[0]
        assert not equivalent("0.142857", constant)[0]
    assert equivalent(r"\frac{3\cdot 10^{20}}{\sqrt{4}}", r"1.5\times 10^{20}")[0]


def test_a_constant_that_cannot_be_evaluated_is_no_number() -> None:
    assert not equivalent(r"(2^{31})! \mod 97²\pi", r"\frac{2}{5}")[0]
    assert not judge(r"\boxed{\boxed{(2^{31})! \mod 97}²\pi}", r"$\frac{2}{5}$").correct
    assert not judge(r"\boxed{\boxed{(2^{31})! \mod 97}²\pi}i01e999 or A[$answer is $e&\right)}$ cm", "0.4").correct


def workers(child: checker_pool._Child) -> list[psutil.Process]:
    return psutil.Process(child.process.pid).children()


def test_a_hung_worker_is_killed_and_replaced() -> None:
    pool = checker_pool.CheckerPool(children=1)
    try:
        assert pool.ask("same", r"\sqrt{4}", "2")[1] is True
        (child,) = pool._idle
        (worker,) = workers(child)
        worker.suspend()
        start = time.monotonic()
        with pytest.raises(checker_pool.Refused):
            pool.ask("same", "1", r"\sqrt{1}", seconds=0.5)
        assert time.monotonic() - start < 30
        assert not worker.is_running() and pool.replaced == 1
        assert pool.ask("same", "1", r"\sqrt{1}")[1] is True
        assert pool._idle == [child], "the libraries are not imported again"
    finally:
        pool.close()


def test_a_hung_child_is_killed_with_its_worker_and_another_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = checker_pool.CheckerPool(children=1)
    try:
        pool.ask("same", "1", "2")
        (child,) = pool._idle
        (worker,) = workers(child)
        killed = checker_pool._Child()
        killed.process.kill()
        pool._idle.insert(0, killed)  # as with the memory of a machine that ran full
        os.kill(child.process.pid, signal.SIGSTOP)
        monkeypatch.setattr(checker_pool, "GRACE", 3.0)
        assert pool.ask("same", "2", r"\sqrt{4}")[1] is True
        assert child.process.poll() is not None and pool.replaced == 1
        assert not psutil.wait_procs([worker], timeout=5)[1]
    finally:
        pool.close()


def test_a_checker_that_cannot_be_had_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is wrong because the machine can't start a process: such a rollout is broken, and counted as that."""
    monkeypatch.setattr(checker_pool, "_POOL", checker_pool.CheckerPool(children=1))
    monkeypatch.setattr(checker_pool, "_CHILD", Path("/nowhere/child.py"))
    checker_pool._asked.cache_clear()
    with pytest.raises(checker_pool.Unavailable, match="did not start"):
        judge(r"\boxed{\sqrt{44}}", r"2\sqrt{11}")
    told = accuracy_format.compute_score("x", r"\boxed{\sqrt{44}}", r"2\sqrt{11}")
    assert (told["score"], told["broken"]) == (0.0, 1.0)
    monkeypatch.undo()
    assert judge(r"\boxed{\sqrt{44}}", r"2\sqrt{11}").correct, "not remembered"


def test_nothing_is_left_when_the_caller_is_killed() -> None:
    code = "from reward_fns import checker_pool; import time; checker_pool.warm(); print('warm', flush=True); time.sleep(60)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert caller.stdout is not None and caller.stdout.readline() == b"warm\n"
    children = psutil.Process(caller.pid).children(recursive=True)
    assert len(children) == 2 * checker_pool.CHILDREN, "a parent and its worker each"
    caller.kill()
    caller.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_fork_gets_children_of_its_own() -> None:
    assert equivalent(r"\sqrt{12}", r"2\sqrt{3}")[0]
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, b"1" if equivalent(r"\sqrt{20}", r"2\sqrt{5}")[0] else b"0")
        checker_pool.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 1) == b"1"
    assert equivalent(r"\sqrt{28}", r"2\sqrt{7}")[0], "the parent's still answer"


def test_memory_of_a_worker_is_limited() -> None:
    pool = checker_pool.CheckerPool(children=1)
    try:
        bomb = "10^{" + "9" * 9 + "}"
        with contextlib.suppress(checker_pool.Refused):
            assert pool.ask("same", bomb, "1", seconds=10)[1] is not True
        (child,) = pool._idle
        assert sum(p.memory_info().rss for p in workers(child)) < 2**30
    finally:
        pool.close()


def test_all_choices_together_cost_what_one_answer_may() -> None:
    checker_pool.warm()
    choices = {"A": "\\sqrt{2}", "B": "\\sqrt{3}", "C": "\\sqrt{5}", "D": "\\sqrt{7}"}
    start = time.monotonic()
    assert not judge("\\boxed{\\exp(\\exp(\\exp(\\exp(100))))}", "B", choices).correct
    assert time.monotonic() - start < 20, "2 s of processor time, on a machine that may be busy"


def test_a_costly_choice_does_not_cost_the_others_their_algebra() -> None:
    choices = {"A": "\\int_0^1 x dx", "B": "(x+1)^2"}
    assert judge("\\boxed{x^2+2x+1}", "B", choices).correct


def test_what_was_refused_once_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def ask(*request: str) -> None:
        asked.append(request)
        raise checker_pool.Refused

    monkeypatch.setattr(checker_pool._POOL, "ask", ask)
    for _ in range(3):
        assert equivalent(r"\sqrt{17}+refused", r"\sqrt{18}+refused") == (False, "refused")
    assert len(asked) == 1


def test_works_from_threads_and_coroutines() -> None:
    verdicts: list[bool] = []
    threads = [
        threading.Thread(target=lambda: verdicts.append(judge(r"\boxed{2\sqrt{2}}", r"\sqrt{8}").correct))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 6

    async def ask() -> list[bool]:
        tasks = (asyncio.to_thread(judge, r"\boxed{\sqrt{9}}", "3") for _ in range(3))
        return [verdict.correct for verdict in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [True] * 3


@settings(max_examples=300, deadline=1000)
@given(
    st.text(alphabet=st.sampled_from("\\boxed{}<think>/answer is:B.()$%1270-,^ \n"), max_size=120), st.integers(-99, 99)
)
def test_never_raises_and_agrees_with_itself(noise: str, number: int) -> None:
    verdict = judge(noise, str(number), CHOICES)
    assert verdict.answer is None or verdict.rule
    assert judge(f"<think>{noise.replace('<', '')}</think>\\boxed{{{number}}}", str(number)).correct


def test_imports_neither_torch_nor_sympy() -> None:
    code = "import sys, reward_fns.accuracy_format; print(sorted({'torch', 'sympy', 'math_verify'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
