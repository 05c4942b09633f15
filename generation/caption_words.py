"""The words of captions: classes and their parts, colours and other attributes, and what else people say for them.

`captions.py` has the grammar. A word means one thing only: no class is named like a part, no colour like a material.
"""

from __future__ import annotations

CLASSES: tuple[str, ...] = (
    *("chair", "stool", "table", "mug", "lamp", "car", "truck", "house"),
    *("tree", "cactus", "snowman", "rocket", "bottle", "robot", "person", "sword"),
)
PROPS: tuple[str, ...] = ("box", "ball", "horse", "board")  # what persons do something with; known by themselves, too
NOUNS = CLASSES + PROPS

# Parts that a caption can colour. The first two are the main ones: the colour of an object is that of both.
PARTS: dict[str, tuple[str, ...]] = {
    "chair": ("seat", "legs", "back"),
    "stool": ("seat", "legs"),
    "table": ("top", "legs"),
    "mug": ("body", "handle"),
    "lamp": ("shade", "base"),
    "car": ("body", "cabin", "wheels"),
    "truck": ("cabin", "trailer", "wheels"),
    "house": ("walls", "roof", "door", "chimney"),
    "tree": ("leaves", "trunk"),
    "cactus": ("stem", "pot"),
    "snowman": ("body", "hat", "nose", "scarf"),
    "rocket": ("body", "fins", "tip"),
    "bottle": ("body", "cap", "label"),
    "robot": ("body", "head", "arms", "legs"),
    "person": ("shirt", "trousers", "hair", "shoes"),
    "sword": ("blade", "hilt"),
    "box": ("sides", "lid"),
    "ball": ("surface", "band"),
    "horse": ("body", "mane", "legs"),
    "board": ("deck", "wheels"),
}
# A third or fourth part without a word of its own takes the colour of this main part; absent: its natural colour.
FOLLOWS: dict[str, dict[str, str]] = {
    "chair": {"back": "legs"},
    "rocket": {"tip": "fins"},
    "robot": {"arms": "head", "legs": "head"},
    "horse": {"legs": "body"},
}

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.11, 0.10),
    "orange": (0.97, 0.50, 0.07),
    "yellow": (0.97, 0.85, 0.12),
    "green": (0.13, 0.60, 0.18),
    "blue": (0.10, 0.25, 0.82),
    "purple": (0.48, 0.14, 0.66),
    "pink": (0.98, 0.58, 0.74),
    "brown": (0.42, 0.23, 0.10),
    "white": (0.94, 0.94, 0.93),
    "black": (0.08, 0.08, 0.09),
}

# (first, second) main colours of things whose colours nobody names; the second also where only the first is named and
# the class keeps it (below). None of these pairs is ever held out.
NATURAL: dict[str, tuple[tuple[str, str], ...]] = {
    "chair": (("brown", "brown"), ("red", "brown")),
    "stool": (("brown", "brown"), ("yellow", "brown")),
    "table": (("brown", "brown"), ("white", "brown")),
    "mug": (("white", "white"), ("blue", "blue")),
    "lamp": (("yellow", "brown"), ("white", "black")),
    "car": (("red", "red"), ("blue", "white")),
    "truck": (("blue", "white"), ("red", "white")),
    "house": (("white", "red"), ("yellow", "brown")),
    "tree": (("green", "brown"),),
    "cactus": (("green", "orange"),),
    "snowman": (("white", "black"),),
    "rocket": (("white", "red"),),
    "bottle": (("green", "brown"), ("brown", "yellow")),
    "robot": (("blue", "white"), ("white", "black")),
    "person": (("red", "blue"), ("blue", "black"), ("green", "brown")),
    "sword": (("white", "brown"), ("white", "black")),
    "box": (("brown", "brown"),),
    "ball": (("red", "white"), ("blue", "yellow")),
    "horse": (("brown", "black"), ("white", "white")),
    "board": (("brown", "black"), ("orange", "white")),
}
# "a red tree" has red leaves and a trunk like any other: the second part keeps its natural colour.
KEEPS_SECOND: dict[str, str] = {"tree": "brown", "snowman": "black", "cactus": "orange"}

SIZES: tuple[str, ...] = ("tiny", "small", "large", "huge")
PROPORTIONS: tuple[str, ...] = ("tall", "short", "wide", "thin")
MATERIALS: tuple[str, ...] = ("matte", "shiny", "metallic", "wooden", "striped")
COUNTS: dict[str, int] = {"two": 2, "three": 3}
RELATIONS: tuple[str, ...] = ("next to", "on top of")
INTERACTIONS: dict[str, tuple[str, ...]] = {  # what a person does, and with what in sampled captions
    "sitting on": ("box", "chair", "table", "ball"),
    "standing on": ("box", "table", "board", "chair"),
    "holding": ("box", "ball", "board"),
    "riding": ("horse", "board"),
    "leaning on": ("box", "table", "chair", "board"),
    "pushing": ("box", "chair", "table", "ball"),
}
PREFIXES: tuple[str, ...] = ("a photo of", "a 3d model of")

PLURALS: dict[str, str] = {noun: noun + "s" for noun in NOUNS} | {
    "cactus": "cacti",
    "snowman": "snowmen",
    "person": "people",
    "box": "boxes",
}

# Said instead in a tenth of sampled captions, so that networks learn them; single words for single words.
SPOKEN: dict[str, tuple[str, ...]] = {
    "car": ("automobile", "auto"),
    "truck": ("lorry",),
    "house": ("home", "cottage"),
    "mug": ("cup",),
    "lamp": ("light",),
    "rocket": ("spaceship",),
    "person": ("human", "man", "woman"),
    "table": ("desk",),
    "chair": ("armchair",),
    "stool": ("barstool",),
    "robot": ("android",),
    "sword": ("saber",),
    "bottle": ("flask",),
    "box": ("crate", "cube"),
    "ball": ("sphere",),
    "horse": ("pony",),
    "board": ("skateboard",),
    "tiny": ("miniature",),
    "small": ("little",),
    "large": ("big",),
    "huge": ("giant", "enormous"),
    "tall": ("high",),
    "short": ("low",),
    "wide": ("broad",),
    "thin": ("narrow", "slim"),
    "matte": ("dull",),
    "shiny": ("glossy",),
    "metallic": ("metal",),
    "wooden": ("wood",),
    "striped": ("stripy",),
    "red": ("crimson",),
    "purple": ("violet",),
    "green": ("emerald",),
    "blue": ("azure",),
    "pink": ("rosy",),
    "cabin": ("cab",),
    "trousers": ("pants", "jeans"),
    "shirt": ("jacket",),
    "leaves": ("foliage",),
    "walls": ("facade",),
    "top": ("tabletop",),
    "trailer": ("container",),
    "tip": ("nosecone",),
    "stem": ("stalk",),
    "cap": ("cork",),
}

# Understood as well, but not learnt: what is said -> words of the grammar.
ALSO: dict[str, str] = {
    "car": "cars vehicle sedan coupe taxi hatchback limousine limo racecar motorcar",
    "truck": "lorries pickup van semi hauler",
    "house": "homes hut building cottages villa barn shed bungalow mansion farmhouse",
    "tree": "oak pine fir birch maple shrub bush sapling",
    "cactus": "cactuses succulent saguaro",
    "mug": "cups teacup tankard beaker goblet",
    "lamp": "lights lantern lampshade luminaire nightlight",
    "rocket": "rocketship missile spacecraft shuttle spaceships",
    "person": "persons men women humans guy girl boy child kid lady gentleman figure humanoid someone somebody adult",
    "table": "desks workbench counter",
    "chair": "armchairs sofa couch throne recliner bench",
    "stool": "barstools footstool pouf ottoman",
    "robot": "androids droid mech automaton cyborg",
    "sword": "sabers sabre dagger katana rapier longsword broadsword knife swords",
    "bottle": "flasks jar vial decanter winebottle",
    "snowman": "snowperson snowmans",
    "box": "crates cubes chest carton package block cuboid",
    "ball": "spheres orb globe football basketball",
    "horse": "ponies donkey mule zebra stallion mare foal",
    "board": "skateboards surfboard plank snowboard",
    "tiny": "minuscule teeny wee mini micro",
    "small": "smallish petite compact",
    "large": "sizable hefty bulky",
    "huge": "gigantic massive colossal immense humongous",
    "tall": "lofty elongated towering",
    "short": "squat stubby stumpy shallow",
    "wide": "fat thick chubby stout plump",
    "thin": "slender skinny slight lean",
    "matte": "mat unpolished rough",
    "shiny": "polished gleaming lacquered glazed plastic",
    "metallic": "steel iron chrome aluminium aluminum tin",
    "wooden": "timber oaken",
    "striped": "stripes stripey banded",
    "red": "scarlet ruby vermilion maroon cherry",
    "orange": "tangerine amber copper",
    "yellow": "golden gold lemon mustard",
    "green": "lime olive teal jade mint",
    "blue": "navy cyan turquoise cobalt indigo sapphire",
    "purple": "lilac lavender mauve plum",
    "pink": "magenta rose fuchsia salmon coral",
    "brown": "tan beige chestnut chocolate bronze",
    "white": "ivory snowy cream silver silvery",
    "black": "ebony jet onyx",
    "seat": "cushion seats",
    "legs": "leg feet",
    "back": "backrest",
    "top": "tops",
    "handle": "handles",
    "shade": "shades",
    "base": "foot pole",
    "wheels": "wheel tyres tires tyre tire",
    "walls": "wall facades",
    "roof": "rooftop roofs",
    "door": "doors",
    "leaves": "leaf crown canopy",
    "trunk": "bark",
    "pot": "flowerpot planter",
    "hat": "tophat",
    "nose": "carrot",
    "scarf": "shawl",
    "fins": "fin",
    "cap": "stopper",
    "label": "sticker",
    "head": "heads",
    "arms": "arm",
    "shirt": "sweater pullover tshirt blouse coat",
    "trousers": "trouser shorts leggings",
    "shoes": "shoe boots sneakers",
    "blade": "blades",
    "hilt": "grip handguard pommel",
    "band": "ring",
    "mane": "tail",
    "deck": "planks",
    "two": "2 pair",
    "three": "3 trio",
    "with": "having has featuring plus",
    "and": "&",
}
SYNONYMS: dict[str, str] = {
    **{said: word for word, line in ALSO.items() for said in line.split()},
    **{said: word for word, others in SPOKEN.items() for said in others},
    **{plural: noun for noun, plural in PLURALS.items()},
}
SAID_TOGETHER: dict[str, str] = {  # several words -> one phrase of the grammar
    **{phrase: phrase for phrase in (*RELATIONS, *INTERACTIONS, *PREFIXES)},
    **{f"{word} view": f"{word} view" for word in ("front", "side", "back", "overhead")},
    **{f"from the {word}": f"{word} view" for word in ("front", "side", "back")},
    **dict.fromkeys(("rear view", "from behind", "seen from behind"), "back view"),
    **dict.fromkeys(("top view", "from above", "seen from above"), "overhead view"),
    **dict.fromkeys(("a picture of", "a photograph of", "an image of", "photo of", "picture of"), "a photo of"),
    **dict.fromkeys(("a render of", "a 3d render of", "a model of", "3d model of", "a 3d object of"), "a 3d model of"),
    **dict.fromkeys(
        ("beside", "near", "close to", "by", "adjacent to", "to the left of", "to the right of"), "next to"
    ),
    **dict.fromkeys(("on", "upon", "atop", "over", "placed on", "lying on"), "on top of"),
    **dict.fromkeys(("sits on", "seated on", "sitting in", "sits in", "sitting on top of"), "sitting on"),
    **dict.fromkeys(("stands on", "standing on top of"), "standing on"),
    **dict.fromkeys(("carrying", "holds", "carries"), "holding"),
    **dict.fromkeys(("rides", "riding on"), "riding"),
    **dict.fromkeys(("leans on", "leaning against", "leans against"), "leaning on"),
    **dict.fromkeys(("pushes",), "pushing"),
}
_SKIPPED = "a an the one single of is are in that which its made very some this out my colored coloured"
SKIPPED = frozenset(_SKIPPED.split())  # words that change nothing
