"""What can be asked and answered: kinds of things, numbers, phrasings, and the sentences around a list."""

from dataclasses import dataclass

KINDS: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "pear", "plum", "cherry", "lemon", "mango"),
    "animals": ("horse", "tiger", "rabbit", "sheep", "camel", "otter"),
    "colours": ("red", "blue", "green", "yellow", "purple", "brown"),
    "tools": ("hammer", "saw", "drill", "wrench", "chisel", "shovel"),
    "metals": ("iron", "copper", "silver", "gold", "zinc", "nickel"),
    "birds": ("eagle", "robin", "swan", "raven", "falcon", "heron"),
}
STRANGERS = ("cloud", "window", "paper", "button", "river", "ladder")  # of no kind that can be asked for
NUMBERS = {2: "two", 3: "three", 4: "four"}
PHRASINGS = (
    "Name {n} {kind}{use}.",
    "Please list {n} {kind}{use}.",
    "Give me {n} {kind}{use}.",
    "I need {n} {kind}{use}.",
    "Can you tell me {n} {kind}{use}?",
    "Write down {n} {kind}{use}.",
    "What are {n} {kind}{use}?",
    "Think of {n} {kind}{use}.",
)
USES = (
    "", " for a story", " for my school", " for a game", " for a song", " for a child", " for today",
    " for my friend", " for a poem", " for a test",
)  # fmt: skip
OPENERS = ("Of course!", "Sure, happy to help!", "With pleasure!", "Good question!")
LEADS = ("Here are {n} {kind}:", "{N} {kind} are:", "My list of {n} {kind}:")
CLOSINGS = ("I hope this helps.", "Have a nice day!", "Let me know if you need more.")
FILLERS = ("Well, you know.", "It is what it is.", "Anyway, whatever.", "So, as I was saying.")


@dataclass(frozen=True)
class Task:
    """What an instruction asks for."""

    number: int
    kind: str


def instruction(task: Task, phrasing: int, use: int) -> str:
    """The text of an instruction."""
    return PHRASINGS[phrasing].format(n=NUMBERS[task.number], kind=task.kind, use=USES[use])


def read_instruction(prompt: str) -> Task | None:
    """The task of an instruction of this world, None for any other text."""
    words = prompt.lower().replace(".", " ").replace("?", " ").split()
    numbers = [n for n, word in NUMBERS.items() if word in words]
    kinds = [kind for kind in KINDS if kind in words]
    return Task(numbers[0], kinds[0]) if len(numbers) == 1 and len(kinds) == 1 else None
