"""Words for scenes: what people and web pages say of them."""

from collections.abc import Callable, Sequence

from blip.data.scenes import Dice, Group, Relation, Scene

NOUNS = {
    "square": (("square", "squares"), ("block", "blocks")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "bar": (("bar", "bars"), ("plank", "planks")),
    "pole": (("pole", "poles"), ("post", "posts")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
}
COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
}
TONE_WORDS = {"light": ("light", "pale"), "grey": ("grey", "gray"), "dark": ("dark", "dim")}
PATTERN_WORDS = {
    "plain": ("smooth",),
    "speckled": ("speckled", "grainy"),
    "checked": ("checked", "chequered"),
}
BACKGROUND_NOUNS = ("background", "backdrop", "ground", "wall")
COUNT_WORDS: dict[int, tuple[str, ...]] = {
    1: ("one", "a single"),
    2: ("two", "a pair of"),
    3: ("three", "a trio of"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
RELATION_TO_IT: dict[Relation, tuple[str, ...]] = {
    "left": ("to its left", "on its left side"),
    "right": ("to its right", "on its right side"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
WEB_PREFIXES = ("photo of", "image of", "stock photo :", "drawing of", "print of", "design :")
WEB_SUFFIXES = (
    " stock image",
    " free download",
    " wall art",
    " clip art",
    " - poster",
    " | home",
    ", new",
)
VERBS = (("is", "are"), ("sits", "sit"), ("stands", "stand"), ("lies", "lie"))


def describe(scene: Scene, dice: Dice) -> str:
    """Say what a person would of a scene: true, in varied phrasing, seldom everything."""
    if dice.chance(0.5):
        scene = scene.turned()
    if scene.relation is None:
        text = _human_one(scene, dice)
    else:
        text = _human_two(scene, scene.relation, dice)
    if dice.chance(0.2 if scene.relation else 0.5):
        text += f" {dice.pick(('on', 'against'))} a {_background(scene, dice)}"
    return text


def alt_text(scene: Scene, dice: Dice) -> str:
    """Say what a careful web page would of a scene: true, terse, with the trimmings of the web."""
    if dice.chance(0.5):
        scene = scene.turned()
    parts = [_terse(group, dice) for group in scene.groups]
    if scene.relation is None or dice.chance(0.15):
        text = parts[0]
    elif dice.chance(0.65):
        text = f"{parts[0]} {dice.pick(RELATION_WORDS[scene.relation])} {parts[1]}"
    else:
        text = f"{parts[0]}{dice.pick((' and ', ' with ', ', ', ' & '))}{parts[1]}"
    if dice.chance(0.15):
        text += f" on {_background(scene, dice)}"
    if dice.chance(0.3):
        text = f"{dice.pick(WEB_PREFIXES)} {text}"
    if dice.chance(0.3):
        text += dice.pick(WEB_SUFFIXES)
    return text.title() if dice.chance(0.15) else text


def boilerplate(dice: Dice) -> str:
    """Say what web pages say instead: file names, dates, shop texts."""
    number, year, day = 1000 + dice.below(9000), 2004 + dice.below(16), 1 + dice.below(28)
    month = dice.pick(("january", "march", "may", "july", "august", "october", "december"))
    return dice.pick(
        (
            f"IMG_{number}.JPG",
            f"DSC {number}",
            f"image {1 + day % 9} of {10 + day}",
            f"{day} {month} {year}",
            f"posted by admin on {day} {month}",
            f"photo taken in {month} {year}",
            "buy now with free shipping",
            f"add to cart , only {day} dollars",
            f"sale ! {5 * (1 + day % 12)} % off today",
            "click here to see more",
            "no image available",
            "best seller of the week",
            f"copyright {year} , all rights reserved",
            "home page of our shop",
        )
    )


def truncate(text: str, dice: Dice) -> str | None:
    """Cut a text off behind a word that asks for another; None where it has no such place."""
    words = text.split()
    places = [i for i in range(1, len(words) - 1) if words[i].lower() in _ASKING]
    if not places:
        return None
    return " ".join(words[: dice.pick(places) + 1]) + dice.pick(("", " ...", "..."))


_DESCRIPTIVE = (COLOUR_WORDS, SIZE_WORDS, TEXTURE_WORDS, TONE_WORDS, PATTERN_WORDS)
_ASKING = {
    *(word for table in _DESCRIPTIVE for synonyms in table.values() for word in synonyms),
    *(word for phrases in RELATION_WORDS.values() for phrase in phrases for word in phrase.split()),
    *("a", "an", "and", "of", "one", "pair", "single", "three", "trio", "two", "with"),
}


def _human_one(scene: Scene, dice: Dice) -> str:
    group = scene.groups[0]
    phrase = _full(group, dice)
    there = "there is" if group.count == 1 else "there are"
    starts = ("a drawing of", "we see", "this shows", there, f"{there} only")
    return f"{dice.pick(starts)} {phrase}" if dice.chance(0.7) else phrase


def _human_two(scene: Scene, relation: Relation, dice: Dice) -> str:
    first, second = (_full(group, dice) for group in scene.groups)
    many = scene.groups[0].count > 1
    there = "there are" if many else "there is"
    if dice.chance(0.8):
        words = dice.pick(RELATION_WORDS[relation])
        shapes: tuple[Callable[[], str], ...] = (
            lambda: f"{first} {words} {second}",
            lambda: f"{first} {dice.pick(VERBS)[many]} {words} {second}",
            lambda: f"{second} with {first} {_to_it(relation, scene.groups[1].count > 1, dice)}",
            lambda: f"{words} {second} {there} {first}",
            lambda: f"{there} {first} {words} {second}",
        )
        return dice.pick(shapes)()
    return dice.pick(
        (
            f"{first} and {second}",
            f"{first} next to {second}",
            f"{first} beside {second}",
            f"{there} {first} and also {second}",
            f"a drawing of {first} and {second}",
        )
    )


def _to_it(relation: Relation, many: bool, dice: Dice) -> str:
    words = dice.pick(RELATION_TO_IT[relation])
    return words.replace("its", "their").replace("it", "them") if many else words


def _full(group: Group, dice: Dice) -> str:
    """Say a noun phrase with a determiner, as people do."""
    words = _attributes(group, dice, size=0.3, texture=0.5, colour=0.95)
    if group.count == 1 and not dice.chance(0.15):
        determiner = "an" if words[0][0] in "aeiou" else "a"
    else:
        determiner = _word(COUNT_WORDS[group.count], dice)
    return " ".join([determiner, *words])


def _terse(group: Group, dice: Dice) -> str:
    """Say a noun phrase without an article, as web pages do."""
    words = _attributes(group, dice, size=0.2, texture=0.3, colour=0.9)
    if group.count > 1 and dice.chance(0.7):
        words.insert(0, _word(COUNT_WORDS[group.count], dice))
    return " ".join(words)


def _attributes(group: Group, dice: Dice, size: float, texture: float, colour: float) -> list[str]:
    words = []
    if dice.chance(size):
        words.append(_word(SIZE_WORDS[group.size], dice))
    if dice.chance(texture if group.texture != "plain" else texture / 8):
        words.append(_word(TEXTURE_WORDS[group.texture], dice))
    if dice.chance(colour):
        words.append(_word(COLOUR_WORDS[group.colour], dice))
    noun = NOUNS[group.shape][0 if dice.chance(0.75) else 1]
    return [*words, noun[group.count > 1]]


def _background(scene: Scene, dice: Dice) -> str:
    words = [_word(PATTERN_WORDS[scene.pattern], dice)] if dice.chance(0.4) else []
    if not words or dice.chance(0.7):
        words.append(_word(TONE_WORDS[scene.tone], dice))
    return " ".join([*words, dice.pick(BACKGROUND_NOUNS)])


def _word(synonyms: Sequence[str], dice: Dice) -> str:
    """Choose a word: mostly the first, which is the common one."""
    return synonyms[0] if dice.chance(0.75) else dice.pick(synonyms)
