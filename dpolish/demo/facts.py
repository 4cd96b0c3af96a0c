"""Small things that everybody knows, with a plain answer to each: what the demonstration's pairs are made of."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One kind of question: the ways to ask it, the plain answer, and the facts that fill both."""

    name: str
    questions: tuple[str, ...]
    """`{0}` is the subject."""
    plain: str
    """The answer in one sentence; `{0}` is the subject, `{1}` what is said of it."""
    wordy: tuple[str, ...]
    """The same as a model says it that likes to hear itself."""
    trained: tuple[tuple[str, str], ...]
    """(subject, answer) of the training rows."""
    held_out: tuple[tuple[str, str], ...]
    """(subject, answer) of rows never seen in training; a topic without trained facts is unseen as a whole."""


def _facts(text: str) -> tuple[tuple[str, str], ...]:
    """The facts written as `subject: answer`, one a line or several between semicolons."""
    entries = [entry for line in text.strip().splitlines() for entry in line.split(";") if entry.strip()]
    pairs = [entry.strip().split(": ", maxsplit=1) for entry in entries]
    return tuple((subject, answer) for subject, answer in pairs)


def _sums(numbers: range) -> tuple[tuple[str, str], ...]:
    """Additions of two neighbours out of `numbers`."""
    return tuple((f"{n} plus {n + 1}", str(2 * n + 1)) for n in numbers)


TOPICS: tuple[Topic, ...] = (
    Topic(
        name="capitals",
        questions=("What is the capital of {0}?", "Which city is the capital of {0}?", "Tell me the capital of {0}."),
        plain="The capital of {0} is {1}.",
        wordy=("The capital of {0} is {1}.", "The capital city of {0} is {1}, which is known for its rich history."),
        trained=_facts("""
            France: Paris; Spain: Madrid; Italy: Rome; Germany: Berlin; Austria: Vienna; Greece: Athens; Egypt: Cairo
            Portugal: Lisbon; Poland: Warsaw; Ireland: Dublin; Denmark: Copenhagen; Finland: Helsinki; Cuba: Havana
            Kenya: Nairobi; Peru: Lima; Canada: Ottawa; Thailand: Bangkok; Russia: Moscow
        """),
        held_out=_facts("Norway: Oslo; Japan: Tokyo; Hungary: Budapest; Sweden: Stockholm"),
    ),
    Topic(
        name="opposites",
        questions=("What is the opposite of {0}?", "Which word means the opposite of {0}?"),
        plain="The opposite of {0} is {1}.",
        wordy=("The opposite of {0} is {1}.", "The word that means the opposite of {0} is {1}."),
        trained=_facts("""
            big: small; up: down; early: late; fast: slow; dark: light; wet: dry; old: young; rich: poor; open: closed
            empty: full; loud: quiet; strong: weak; happy: sad; hard: soft; high: low; clean: dirty; thick: thin
            near: far
        """),
        held_out=_facts("hot: cold; left: right; sweet: sour; true: false"),
    ),
    Topic(
        name="sums",
        questions=("What is {0}?", "How much is {0}?", "Add the numbers: {0}."),
        plain="{0} is {1}.",
        wordy=("The sum of {0} is {1}.", "To find {0}, we can add the two numbers together. The answer is {1}."),
        trained=_sums(range(1, 13)),
        held_out=_sums(range(20, 23)),
    ),
    Topic(
        name="measures",
        questions=("How many {0}?", "Can you tell me how many {0}?"),
        plain="There are {1}.",
        wordy=("To find out how many {0}, we can use a simple formula. There are {1}.", "There are {1}."),
        trained=_facts("""
            minutes are in an hour: 60 minutes in an hour
            days are in a week: 7 days in a week
            months are in a year: 12 months in a year
            hours are in a day: 24 hours in a day
            meters are in a kilometer: 1000 meters in a kilometer
            grams are in a kilogram: 1000 grams in a kilogram
            cents are in a dollar: 100 cents in a dollar
            letters are in the alphabet: 26 letters in the alphabet
            sides are in a triangle: 3 sides in a triangle
            players are in a football team: 11 players in a football team
            years are in a century: 100 years in a century
            wheels are on a bicycle: 2 wheels on a bicycle
        """),
        held_out=_facts("""
            minutes are in half an hour: 30 minutes in half an hour
            years are in a decade: 10 years in a decade
            sides are in a square: 4 sides in a square
        """),
    ),
    Topic(
        name="young animals",
        questions=("What is a young {0} called?", "What do people call a baby {0}?"),
        plain="A young {0} is called {1}.",
        wordy=("A young {0} is called {1}.", "The term for a young {0} is {1}."),
        trained=_facts("""
            dog: a puppy; cat: a kitten; cow: a calf; sheep: a lamb; horse: a foal;
            hen: a chick; goat: a kid; bear: a cub; frog: a tadpole
            pig: a piglet; goose: a gosling
        """),
        held_out=_facts("duck: a duckling; kangaroo: a joey"),
    ),
    Topic(
        name="words",
        questions=("What does the word '{0}' mean?", "What is the meaning of '{0}'?", "Explain the word '{0}'."),
        plain="The word '{0}' means {1}.",
        wordy=("The word '{0}' refers to something that is {1}.", "The word '{0}' is an adjective that means {1}."),
        trained=_facts("""
            enormous: very big; tiny: very small; weary: tired; glad: happy; odd: strange; wealthy: rich; brief: short
            ancient: very old; swift: fast; vacant: empty; fragile: easy to break; scarce: hard to find; feeble: weak
            furious: very angry; silent: without a sound; genuine: real; reluctant: not willing; timid: shy
        """),
        held_out=_facts("rapid: quick; humid: damp; courageous: brave; annual: once a year"),
    ),
    Topic(
        name="things",
        questions=("What is a {0}?", "Can you tell me what a {0} is?", "Describe a {0}."),
        plain="A {0} is {1}.",
        wordy=("A {0} is {1}.", "A {0} can be described as {1}."),
        trained=_facts("""
            glacier: a slow river of ice; desert: a dry place with little rain; bridge: a road over water
            kettle: a pot for boiling water; map: a drawing of a place
            ladder: a set of steps for climbing
            lake: water with land all around; wallet: a small case for money; library: a place that lends books
            thermometer: a tool that measures heat; orchard: a garden of fruit trees
            volcano: a mountain that spits fire
            tent: a shelter made of cloth; harbor: a safe place for ships; calendar: a list of the days of the year
            sentence: a group of words that says something; noun: a word for a person, place or thing
        """),
        held_out=_facts("""
            bakery: a shop that sells bread; compass: a tool that shows north
            river: a stream of water that flows to the sea; verb: a word for an action
        """),
    ),
    Topic(
        name="chores",
        questions=("How do I {0}?", "What is the best way to {0}?", "Tell me how to {0}."),
        plain="{1}.",
        wordy=(
            "To {0}, you will need a few simple things and some patience. {1}.",
            "Here is a step-by-step guide to help you {0}:\n\n1. {1}.",
        ),
        trained=_facts("""
            boil an egg: Put it in boiling water for eight minutes
            make tea: Pour hot water on the tea and wait three minutes
            dry wet shoes: Fill them with newspaper and leave them overnight
            cook rice: Simmer one cup of rice in two cups of water
            peel garlic: Press it with a knife and pull off the skin
            wash a sweater: Wash it by hand in cool water
            fall asleep faster: Turn off all screens and dim the lights
            keep bread fresh: Keep it in a paper bag
            save electricity: Turn off what you do not use
            water a cactus: Water it only when the soil is dry
            remove a splinter: Pull it out with clean tweezers
            sharpen a pencil: Turn it in a pencil sharpener
            pack a suitcase: Roll your clothes and put heavy things at the bottom
            clean a mirror: Wipe it with vinegar and a soft cloth
            ripen a banana: Put it in a paper bag with an apple
            stop hiccups: Hold your breath for ten seconds
        """),
        held_out=_facts("""
            clean a window: Wipe it with soapy water and dry it
            cool hot soup: Stir it and wait a few minutes
            learn a new word: Use it in three sentences
            clean a wooden table: Wipe it with a damp cloth
        """),
    ),
    Topic(
        name="jobs",
        questions=("What does a {0} do?", "What is the job of a {0}?"),
        plain="A {0} {1}.",
        wordy=("A {0} is a skilled professional who {1}.", "The job of a {0} is that of a person who {1}."),
        trained=(),
        held_out=_facts("""
            baker: makes bread; farmer: grows food; pilot: flies planes; teacher: teaches students
            plumber: repairs water pipes; dentist: takes care of teeth
        """),
    ),
    Topic(
        name="colors",
        questions=("What color is {0}?", "Which color does {0} have?"),
        plain="{0} is {1}.",
        wordy=("The color of {0} is {1}.", "{0} is {1}."),
        trained=(),
        held_out=_facts(
            "grass: green; snow: white; coal: black; a ripe lemon: yellow; fresh blood: red; a clear sky: blue"
        ),
    ),
)
