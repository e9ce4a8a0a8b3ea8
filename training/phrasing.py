"""One hand-written question becomes many: other openers, synonyms, keywords only, typos, casing.

Everything here is applied while training, anew for every sample; evaluation never uses it.
"""

from __future__ import annotations

import random
import re

__all__ = ["GLUE", "ask_about", "ask_how", "expand", "rephrase"]

# Openers that mean the same: any one of a row may stand for another.
OPENERS = (
    (
        "how do i", "how can i", "how would i", "how should i", "how to", "how do you",
        "how does one", "what is the way to", "what's the best way to", "tell me how to",
        "show me how to",
        "explain how to", "i want to", "i need to", "i would like to", "i'd like to", "help me",
        "what do i do to", "what must i do to", "steps to", "trying to", "how could i", "how do we",
    ),
    (
        "can i", "could i", "is it possible to", "am i able to", "is there a way to", "may i",
        "can you", "can one", "is there any way to", "do you know if i can", "can we",
    ),
    (
        "what is", "what's", "tell me about", "explain", "describe", "what exactly is", "whats",
        "can you explain", "what do you know about", "give me an overview of", "define",
    ),
    ("what are", "tell me about", "list", "which are", "explain", "show me", "what're"),
    ("what does", "what will", "explain what", "tell me what"),
    (
        "does mainspring", "does it", "can mainspring", "will mainspring", "can it", "does this",
        "does the server", "is mainspring able to", "will it",
    ),
    ("is mainspring", "is it", "is this"),
    ("where is", "where's", "where can i find", "where do i find", "where do i see"),
    ("where are", "where do i find", "where can i find", "where can i see"),
    ("which", "what"),
    ("why is", "why's", "what makes", "how come"),
    ("why does", "why did", "how come", "what is the reason that"),
    ("what happens if", "what happens when", "what if", "what will happen if", "what occurs when"),
    ("do i need", "do i have to have", "must i have", "is it necessary to have", "do we need"),
    ("do i have to", "must i", "do i need to", "am i required to", "is it necessary to"),
)  # fmt: skip

SYNONYMS = (
    ("start", "launch", "boot", "bring up", "start up", "fire up"),
    ("change", "set", "modify", "adjust", "configure", "alter"),
    ("show", "display", "print", "see"),
    ("delete", "remove", "erase", "get rid of"),
    ("stop", "halt", "end", "shut down"),
    ("limit", "cap", "restrict", "bound"),
    ("request", "call", "query"),
    ("requests", "calls", "queries"),
    ("answer", "reply", "response"),
    ("answers", "replies", "responses"),
    ("memory", "ram"),
    ("multiple", "several", "many", "more than one", "two"),
    ("docs", "documentation", "manual"),
    ("download", "fetch", "get", "grab"),
    ("error", "failure", "problem", "error message"),
    ("fast", "quick", "speedy"),
    ("faster", "quicker", "speed up"),
    ("big", "large", "huge"),
    ("small", "little", "tiny"),
    ("use", "employ", "work with"),
    ("supported", "accepted", "available", "understood"),
    ("support", "accept", "handle", "understand"),
    ("api key", "api-key", "apikey", "api token", "access key"),
    ("server", "mainspring server", "service"),
    ("mainspring", "the server", "it", "this", "mainspring"),
    ("command", "cli command"),
    ("setting", "option", "parameter", "flag"),
    ("settings", "options", "configuration"),
    ("maximum", "max", "largest", "highest"),
    ("minimum", "min", "least"),
    ("directory", "folder", "dir"),
    ("computer", "machine", "box", "laptop", "host"),
    ("machine", "computer", "box"),
    ("client", "caller"),
    ("clients", "callers", "users"),
    ("test", "try", "check"),
    ("list", "show", "enumerate"),
    ("choose", "select", "pick"),
    ("crash", "die", "go down"),
    ("crashes", "dies", "goes down", "is killed"),
    ("mean", "signify", "stand for"),
    ("need", "require"),
    ("works", "functions"),
    ("concurrent", "simultaneous", "parallel"),
    ("environment variable", "env var", "env variable", "environment"),
    ("write", "make", "create"),
    ("example", "sample"),
    ("doesn't", "does not", "doesnt"),
    ("can't", "cannot", "cant"),
    ("don't", "do not", "dont"),
)  # fmt: skip

PREFIXES = (
    "hi, ", "hello, ", "hey, ", "hi! ", "please ", "please, ", "quick question: ", "question: ",
    "ok, ", "ok so ", "so ", "um, ", "can you tell me ", "do you know ", "I wonder, ", "sorry, ",
    "I'm new here. ", "i am a beginner, ", "good morning, ", "one more thing: ", "and ", "also, ",
    "in mainspring, ", "with mainspring, ", "mainspring: ", "about mainspring: ", "thanks. ",
    "excuse me, ", "I am stuck: ", "help! ", "newbie question: ", "just curious, ", "well, ",
)  # fmt: skip
SUFFIXES = (
    " please", ", please", " thanks", ", thanks!", " in mainspring", " with mainspring", " here",
    " exactly", " again", " in detail", " quickly", ", do you know", " on my machine",
    " for mainspring", " now", " on linux", ", if at all", " by the way",
    " in this server", " easily",
)  # fmt: skip
LEADS = (
    "I am building a chatbot. ", "my boss asks: ", "we are a small team; ", "for my work: ",
    "I read a lot but did not find it: ", "I have a laptop with 16 GB. ", "before I go on, ",
    "a colleague wants to know: ", "on our test machine, ", "today I tried something, but ",
    "sorry if this is obvious: ", "suppose I am a student; ", "I could not find out: ",
    "our company is growing and ", "just to be sure: ", "one thing is not clear to me: ",
    "when I am at home, ", "I have searched everywhere; ", "it is my first day, ",
    "next question. ", "tell me honestly, ", "since yesterday I wonder: ", "if possible, ",
    "in the long run, ",
)  # fmt: skip
TAILS = (
    "; what should I do", ", what now", ", any idea", ", how", ", what do I do",
    ", is that possible", ", what do you suggest", ", what then", ", how does that work",
    ", what can I do", ", why", ", can you help", "; what is the right way",
    ", what helps", ", or not", " and how", ", how would I do that", ", what happens",
    ", tell me more", ", what does that mean",
)  # fmt: skip
WANTS = (
    "I want to", "I need to", "I have to", "I would like to", "we want to", "suppose I want to",
    "my job is to", "I am trying to", "my boss wants me to", "if I want to", "let's say I need to",
    "in order to", "to",
)  # fmt: skip
DEMANDS = (
    ", how", ", what do I run", ", which option is it", ", what is the command", ", what do I set",
    ", which flag is that", ", what do I need", "; is there a setting", ", what do I send",
    "; how is it done", ", what do I type", "; which command", ", what must I change",
    "; what do I do", ", where do I start", "; is that possible", ", which setting",
)  # fmt: skip
GLUE = frozenset({
    "a", "an", "the", "my", "do", "does", "i", "to", "for", "of", "in", "on", "it", "is", "are",
    "be", "can", "could", "would", "should", "you", "we", "me", "please", "that", "this",
    "with", "and", "or", "there", "any", "some", "its", "if", "how", "what", "so", "from",
    "at", "by", "as",
})  # fmt: skip
INNERMOST = re.compile(r"\[([^\[\]]*)\]")
ABOUT = (
    "{}", "{}", "{}", "{}", "what is {}", "what is {}", "what about {}", "tell me about {}",
    "explain {}", "what does {} mean", "information about {}", "I have a question about {}",
    "how about {}", "details of {}", "what can you tell me about {}", "and {}", "help with {}",
    "what do I need to know about {}", "how does {} work", "what are {}", "question about {}",
    "what is meant by {}", "what is there to know about {}", "where can I read about {}",
    "what happens with {}", "can you say something about {}", "I do not understand {}",
)  # fmt: skip
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def expand(pattern: str, rng: random.Random) -> str:
    """One reading of a pattern such as `set the [port|port number]`."""
    while "[" in pattern:
        pattern = INNERMOST.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    return " ".join(pattern.split()).replace(" ,", ",")


def ask_how(task: str, rng: random.Random) -> str:
    """A question for a task such as `set the port`."""
    draw = rng.random()
    if draw < 0.45:
        return f"{rng.choice(OPENERS[0])} {task}"
    if draw < 0.60:
        return f"{rng.choice(WANTS)} {task}{rng.choice(DEMANDS)}"
    return f"{rng.choice(OPENERS[1])} {task}" if draw < 0.75 else task


def ask_about(subject: str, rng: random.Random) -> str:
    """A question for a subject such as `the default port`."""
    return rng.choice(ABOUT).format(subject)


def _replace_opener(text: str, rng: random.Random) -> str:
    lower = text.lower()
    fitting = [(row, opener) for row in OPENERS for opener in row if lower.startswith(opener + " ")]
    if not fitting:
        return text
    row, opener = max(fitting, key=lambda pair: len(pair[1]))
    return rng.choice(row) + text[len(opener) :]


def _replace_synonyms(text: str, rng: random.Random, share: float) -> str:
    for row in SYNONYMS:
        word = row[0]
        if word in text.lower() and rng.random() < share:
            other = rng.choice(row)
            text = re.sub(rf"(?<![\w`/-]){re.escape(word)}(?![\w`/-])", other, text, flags=re.I)
    return text


def _drop_glue(text: str, rng: random.Random, share: float) -> str:
    words = text.split()
    kept = [w for w in words if w.lower().strip("?.,!") not in GLUE or rng.random() >= share]
    return " ".join(kept) if len(kept) >= 2 else text


def _typo(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    for row in KEYBOARD:
        if (place := row.find(word[at].lower())) >= 0:
            near = row[max(0, place - 1) : place + 2].replace(word[at].lower(), "") or word[at]
            return word[:at] + rng.choice(near) + word[at + 1 :]
    return word


def _misspell(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    for i in rng.sample(long, min(len(long), rng.choice((1, 1, 2)))):
        words[i] = _typo(words[i], rng)
    return " ".join(words)


def _recase(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.40:
        return text.lower()
    if draw < 0.43:
        return text.upper()
    if draw < 0.75:
        return text[:1].upper() + text[1:]
    return text


def _repunctuate(text: str, rng: random.Random) -> str:
    bare = text.rstrip("?.! ")
    return bare + rng.choice(("?", "?", "?", "", "", "", ".", "??", " ?", "!"))


def rephrase(question: str, rng: random.Random) -> str:
    """Another way to type the same question; one time in eight, the question as written."""
    if rng.random() < 0.125:
        return question
    text = question.rstrip("?.! ")
    if rng.random() < 0.45:
        text = _replace_opener(text, rng)
    text = _replace_synonyms(text, rng, 0.3)
    draw = rng.random()
    if draw < 0.12:
        text = _drop_glue(text, rng, 1.0)
    elif draw < 0.32:
        text = _drop_glue(text, rng, 0.35)
    if rng.random() < 0.18:
        text = rng.choice(rng.choice((PREFIXES, LEADS))) + text
    if rng.random() < 0.14:
        text += rng.choice(rng.choice((SUFFIXES, TAILS)))
    if rng.random() < 0.18:
        text = _misspell(text, rng)
    return _repunctuate(_recase(text, rng), rng)
