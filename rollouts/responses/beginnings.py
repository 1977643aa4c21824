"""How texts begin that a target is to write, so that they become what was wished for.

A model of 135 M parameters that is told to ask for a table asks for advice instead, and a dialogue
that it is asked for has no speakers. Behind `A box holds 12 pencils and` or `Anna: Hi Ben,` it goes
on as it should. The words are ours and many, so that texts differ; none is of a published test.
"""

from __future__ import annotations

import random

SUBJECTS = (
    *("a lighthouse", "a school garden", "a lost dog", "a new tram line", "a bakery", "honeybees"),
    *("a village football club", "a chess tournament", "an old bridge", "a flooded cellar"),
    *("a museum of clocks", "a night train", "a power cut", "a jazz festival", "solar panels"),
    *("a repair shop for bicycles", "a public library", "a heat wave", "an earthquake drill"),
    *("a wedding in the rain", "a broken laptop", "a job interview", "moving to a new flat"),
    *("a delayed flight", "a surprise party", "a camping trip", "a science fair", "a marathon"),
    *("learning to cook", "a visit to the dentist", "a fishing harbour", "a film shot in town"),
    *("a start-up company", "a city budget", "a court case", "a hospital", "a volcano", "coral"),
    *("a rare bird", "the history of paper", "a space telescope", "antibiotics", "coffee farming"),
    *("an art theft", "a charity concert", "a strike of bus drivers", "a bank", "a snow storm"),
    *("a group project at university", "a rented car", "neighbours and noise", "a cat and a vet"),
    *("an online order that went wrong", "a gym membership", "a school trip", "a book club"),
)
_SPEAKERS = (
    *("Anna", "Ben", "Chidi", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ines", "Jonas", "Kofi"),
    *("Lena", "Marek", "Nadia", "Omar", "Paula", "Rosa", "Samir", "Tess", "Viktor", "Wanda"),
)
_THINGS = (
    *("pencils", "apples", "tickets", "books", "bottles", "tiles", "chairs", "stamps", "cookies"),
    *("candles", "plants", "bricks", "shirts", "coins", "boxes", "eggs", "bags of rice", "lamps"),
)
_EXERCISES = (
    "{one} has {n} {things} and",
    "{one} buys {n} {things} for {m} dollars each and",
    "A shop sells {things} for {m} dollars each.",
    "A box holds {n} {things} and",
    "{one} earns {n} dollars an hour and",
    "{one} walks {m} km in",
    "A train travels {n} km in {m} hours and",
    "{one} and {other} share {n} {things}.",
    "A tank holds {n} litres of water. Every hour",
    "There are {n} {things} in a bag. {m} of them are",
    "A rectangle is {n} cm long and",
    "The sum of two numbers is {n}, and",
    "{one} is {m} years older than {other}.",
    "A recipe for {m} people needs",
    "What is {m}% of",
    "Solve for x: {m}x",
    "Simplify the expression {m}x",
    "What is the probability of",
    "Calculate the area of",
    "If {m} {things} cost {n} dollars, how",
    "The price of a bicycle is {n} dollars. It is reduced by",
)
_REQUESTS = (
    "Make a Markdown table of {n} {topic} with",
    "Make a table of {topic} with columns for",
    "Write a table comparing {topic} by",
    "Give me a JSON object that describes one of {n} {topic}, with",
    "Return a JSON array of {n} {topic} with the fields",
    "Write a JSON file for a list of {topic}. Each has",
    "Write a CSV file of {n} {topic} with the columns",
    "Write a YAML file that lists {topic} with",
    "List {n} {topic} and for each",
    "List {n} {topic} that",
    "Give me a numbered list of {n} {topic}",
    "Give me a bulleted list of {topic}",
    "Make a checklist for",
    "Write an XML document for {n} {topic} with",
    "Create an HTML table of {topic} that shows",
    "Name {n} {topic} and",
)
_TOPICS = (
    *("rivers", "planets", "films", "recipes", "birds", "board games", "programming languages"),
    *("museums", "customers", "employees", "hotels", "vegetables", "books", "musicians", "bridges"),
    *("exercises for the back", "lakes", "inventions", "smartphones", "trees", "train stations"),
    *("orders of a web shop", "classes of a school", "diseases", "sports", "cities", "wines"),
    *("weekend trips", "songs", "elements", "cars", "painters", "meals for a week", "festivals"),
)
_FIRST_LINES = (
    "{one}: Hi {other}, have you heard about {subject}?",
    "{one}: {other}, I need to talk to you about {subject}.",
    "{one}: What did you think of {subject}, {other}?",
    "{one}: {other}, do you have a minute? It is about {subject}.",
    "{one}: I am still thinking about {subject}.",
    "{one}: Guess what, {other}! There is news about {subject}.",
)


def beginning_of(wish: str, seed: int) -> str:
    """The first words of a text; empty where the target finds its own.

    Args:
        wish: What is wished for, as in `draftgym.rollouts.responses.wishes`.
        seed: Draws them.
    """
    draw = random.Random(f"beginning {seed}")
    one, other = draw.sample(_SPEAKERS, 2)
    if wish == "math":
        n, m, things = draw.randint(12, 90), draw.randint(2, 11), draw.choice(_THINGS)
        return draw.choice(_EXERCISES).format(one=one, other=other, n=n, m=m, things=things)
    if wish == "structured":
        n, topic = draw.randint(3, 10), draw.choice(_TOPICS)
        return draw.choice(_REQUESTS).format(n=n, topic=topic)
    if wish == "dialogue":
        first = draw.choice(_FIRST_LINES)
        said = first.format(one=one, other=other, subject=draw.choice(SUBJECTS))
        return f"{said}\n{other}:"
    return ""
