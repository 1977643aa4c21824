"""A prompt's category is told by its words, and bad prompts are left out for a reason."""

from __future__ import annotations

import pytest

from draftgym.rollouts.prompts.kinds import KINDS, kind_of, lacks_its_text
from draftgym.rollouts.prompts.overlap import HeldOut, Seen
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.rollouts.prompts.sifting import Fault, Limits, Sieve, fault_of

ARTICLE = (
    "The lighthouse of Port Elna was repainted last week for the first time since 1987. Twelve "
    "volunteers hung from ropes for six days, and a retired keeper mixed the red paint himself. "
    "On Sunday the lamp was lit again while the harbour band played, and the mayor thanked all who "
    "had given money, among them a school class that had baked cakes since autumn."
)
DIALOGUE = (
    "Ben: shall we meet at seven, then?\nIda: I have choir until eight.\nBen: nine at my place?\n"
    "Ida: only if somebody cooks\nBen: I bought fish this morning\nIda: then I'll bring dessert"
)
OF_A_KIND = [
    ("How do I tell my flatmate that his music is too loud?", "chat"),
    ("I'm planning a trip to Japan in autumn. What should I see?", "chat"),
    ("Can you explain how vaccines work?", "chat"),
    ("Write a script for a school play about a dragon.", "chat"),
    ("What were the causes of the First World War?", "chat"),
    ("Write a Python function that reverses the words of a sentence.", "code"),
    ("How do I center a div with CSS in my web page code?", "code"),
    ("Fix this:\n```\nfor i in rang(3): print(i)\n```", "code"),
    ("Explain how a binary search works on a sorted array.", "code"),
    ("Write an SQL query that lists all customers without orders.", "code"),
    ("Tom has 14 apples and gives 5 of them to Mia. How many are left?", "math"),
    ("Solve the equation 2x + 3 = 11.", "math"),
    ("What is the derivative of x^3 - 4x?", "math"),
    ("Calculate the area of a circle with a radius of 2 units.", "math"),
    ("Simplify the expression 10x + 12y where x and y are integers.", "math"),
    ("A train runs at 80 km/h for two hours. How far does it get?", "math"),
    ("I'm planning a party for 20 friends and $150. How much food should I buy?", "chat"),
    ("I am 32 and have been in IT for 10 years. How do I find the right career?", "chat"),
    ("I have a 2015 car with a 12-year warranty. Can you help me find the value of it?", "chat"),
    ("Which countries were founded in 1918, and which in 1945 and 1991?", "chat"),
    (f"Summarise the following text in two sentences.\n\n{ARTICLE}", "summary"),
    (f"{ARTICLE}\n\nTL;DR, in one sentence?", "summary"),
    (f"Summarize: {ARTICLE}", "summary"),
    (f"Summarize this dialogue: {DIALOGUE}", "summary"),
    ("Give me the planets as a JSON array with name and radius.", "structured"),
    ("Make a markdown table of five rivers with length and country.", "structured"),
    ("List five animals that sleep in winter.", "structured"),
    ("Write a packing list for a week in the mountains.", "structured"),
]


@pytest.mark.parametrize(("text", "kind"), OF_A_KIND)
def test_a_prompt_is_what_its_words_say(text: str, kind: str) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    "text", [f"Tell me what you think of this report.\n\n{ARTICLE}", "Summarise the Odyssey."]
)
def test_a_summary_needs_a_request_and_a_text(text: str) -> None:
    assert kind_of(text) == "chat"


def test_most_shipped_prompts_are_found_to_be_what_they_are() -> None:
    prompts = [one for name in ("train", "heldout") for one in load_prompts(name)]
    for kind in KINDS:
        own = [one for one in prompts if one.category == kind]
        found = sum(kind_of(one.text) == kind for one in own)
        assert found >= (0.5 if kind == "summary" else 0.7) * len(own), (kind, found, len(own))


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("Summarise the following article in two sentences.", True),
        ("What is the tone of this poem?", True),
        ("Correct the mistakes in the code below:", True),
        (f"Summarise the following article.\n\n{ARTICLE}", False),
        ("Solve the following equation: 2x = 8", False),
        ("Sort the following numbers: 3, 1, 2.", False),
        ("How do I write a good article?", False),
    ],
)
def test_a_text_that_was_not_pasted_is_missed(text: str, lacks: bool) -> None:
    assert lacks_its_text(text) is lacks


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "too short"),
        ("Hello there!", "too short"),
        ("why " + "so many words " * 200, "too long"),
        ("%% {{ }} ## !! ++ == :: ;; ab cd", "no text"),
        ("1. 5, 0\n2. 6\n3. 7", "no text"),
        ("The user asks for a story about a long train ride.", "an answer"),
        ("What does \ufffd\ufffd mean in my file?", "no text"),
        ("Why is the sky <|im_start|> blue today?", "no text"),
        ("I want to know " + "what you think of that " * 6, "repetitive"),
        ("Tell me.\n" + "I like the blue one.\n" * 3 + "Which is best for me?", "repetitive"),
        ("Sure! Here is a question for you about birds.", "an answer"),
        ("Hello, I'm Max. How can I help you today?", "an answer"),
        ("Write a letter to [Your Name] about the broken lift.", "placeholders"),
        ("Please summarise the following article for me.", "lacks its text"),
    ],
)
def test_a_bad_prompt_is_left_out_for_a_reason(text: str, fault: Fault) -> None:
    assert fault_of(text, True, Limits()) == fault


@pytest.mark.parametrize("text", [text for text, _ in OF_A_KIND])
def test_a_good_prompt_has_no_fault(text: str) -> None:
    assert fault_of(text, True, Limits()) is None
    assert fault_of(text, False, Limits()) == "not ended"


def test_shipped_prompts_have_no_fault() -> None:
    prompts = load_prompts("train")
    faults = {one.question_id: fault_of(one.text, True, Limits()) for one in prompts}
    good = [name for name, fault in faults.items() if fault is None]
    assert len(good) >= 0.95 * len(prompts), faults


LONG = "Please write a short poem about a grey cat that waits for rain by the harbour wall."
SHORT = "What is the capital of Peru?"


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        LONG.upper().replace(" ", "  ").replace(".", "!"),
        "My son asks: write a short poem about a grey cat that waits.",  # eight words of it
        SHORT,
        "what is the capital of peru",
        "What is Peru the capital of?",  # the same words
        "I forgot it again. What is the capital of Peru, and how large is it?",
    ],
)
def test_planted_overlaps_with_held_out_prompts_are_found(text: str) -> None:
    assert HeldOut([LONG, SHORT, "Hello!"]).overlaps(text)


@pytest.mark.parametrize(
    "text",
    [
        "Please write a short poem about a dog.",  # seven words in a row
        "What is the highest mountain in Peru and who climbed it?",
        "Hello! My bicycle makes a strange noise when I turn left.",
        "What is the capital gains tax?",
    ],
)
def test_other_prompts_do_not_overlap(text: str) -> None:
    assert not HeldOut([LONG, SHORT, "Hello!"]).overlaps(text)


def test_a_prompt_is_kept_once() -> None:
    seen = Seen()
    long = f"Summarise this.\n\n{ARTICLE}"
    assert seen.add(SHORT) and seen.add(long)
    assert not seen.add("what is the CAPITAL of peru???"), "the same but for case and punctuation"
    assert not seen.add(long.replace("red paint", "blue paint")), "a word of many is another"
    assert seen.add("Which countries are neighbours of Peru?")
    assert seen.add(f"Summarise this.\n\n{DIALOGUE}"), "one request for another text"
    assert not seen.add(SHORT)


def test_the_reasons_are_counted() -> None:
    sieve = Sieve(HeldOut([LONG]))
    texts = [LONG, SHORT, SHORT, "Hi!", None, "A good question about many old and rare birds?"]
    kept = [sieve.keeps(text, ended=True) for text in texts]
    assert kept == [False, True, False, False, False, True]
    assert not sieve.keeps("A question that has no", ended=False)
    assert sieve.left_out == {
        "held out": 1,
        "duplicate": 1,
        "too short": 1,
        "not as asked": 1,
        "not ended": 1,
    }
