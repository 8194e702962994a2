"""The words Lilliput is made of: names and the possible values of each attribute.

Plain data. Every value starts with a consonant sound, so that an article before the gap ("a",
never "an") tells nothing about it; no value is contained in another one or in a name.
"""

from typing import Literal

__all__ = ["ATTRIBUTES", "FIRST_NAMES", "LAST_NAMES", "POOLS", "Attribute"]

Attribute = Literal["town", "trade", "guild", "dish", "animal", "instrument", "year"]

ATTRIBUTES: tuple[Attribute, ...] = (
    "town",
    "trade",
    "guild",
    "dish",
    "animal",
    "instrument",
    "year",
)


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(separator))


FIRST_NAMES: dict[str, tuple[str, ...]] = {
    "she": _words(
        """Alda Berit Celia Dorrit Edda Fenna Greta Hilda Ilka Jorun Kaja Liva Marit Nella Orla
        Petra Runa Signe Thea Ursel Vanja Wilma Ylva Zora"""
    ),
    "he": _words(
        """Anton Bengt Corin Dirk Emil Falk Gustav Henrik Ivar Joren Kasper Lorenz Matti Nils
        Oskar Pelle Rurik Sander Tobin Ulf Viggo Wendel Yorick Zeno"""
    ),
}
"""First names by the pronoun of those who bear them."""

LAST_NAMES: tuple[str, ...] = _words(
    """Abbot Ashby Barlow Birch Bramley Calder Carver Corby Dalton Denby Drake Dunmore Elwood
    Farrow Fenwick Finch Garland Gorse Grimsby Hadley Harrow Hobbs Holt Ingram Jessop Kemble
    Kirby Lambert Larkin Linden Lowell Marsh Mercer Milner Napier Norwood Oakley Ormond Palmer
    Pembry Pike Quill Radley Ransom Rowan Sedge Selwyn Sharrow Sorrel Tanner Tarrant Tilby Underhill
    Vance Vernon Wadley Walden Weller Whitby Wickham Winslow Wolfe Yardley Yates"""
)

POOLS: dict[Attribute, tuple[str, ...]] = {
    "town": _words(
        """Brindleford Coldwater Dapplewick Fernhollow Goosegate Highmoor Kettlebridge Lowmarket
        Mossbank Netherby Pebblecombe Quarrytop Wrensey Saltmere Thistledown Windlesham
        Bellhaven Cloverton Dunwater Foxgrove Greywharf Hazelmouth Larchfield Millbrook
        Northquay Pinereach Redcliff Stonewell Tollgate Vinestead Westering Yarrowdale"""
    ),
    "trade": _words(
        """baker brewer candlemaker carpenter clockmaker cobbler cooper dyer farrier ferryman
        fisher gardener glassblower goldsmith hatter joiner locksmith mason miller nailer painter
        potter printer roofer ropemaker saddler shepherd tailor tinker thatcher weaver
        wheelwright"""
    ),
    "guild": _words(
        """Anchor Beacon Bluebell Bronze Comet Compass Crescent Falcon Feather Hammer Harvest
        Heron Ivory Lantern Maple Mirror Needle Pillar Rook Sapphire Silver Thunder Tower
        Willow"""
    ),
    "dish": _words(
        """barley soup, baked trout, bean stew, beet salad, bread pudding, cabbage rolls,
        carrot pie, cheese dumplings, cherry tart, chestnut mash, corn fritters, duck broth,
        fried noodles, garlic mussels, ginger cake, honey buns, leek porridge, lemon rice,
        lentil curry, mushroom toast, nut roast, pea pancakes, pear crumble, pepper goulash,
        pickled herring, plum jam, potato gratin, pumpkin waffles, quince jelly, smoked eel,
        spinach omelette, walnut bread""",
        separator=",",
    ),
    "animal": _words(
        """badger beaver bullfinch camel cat donkey ferret frog gecko goat hamster hare hedgehog
        lizard lynx magpie mole mule newt parrot pigeon pony rabbit robin salamander sheepdog
        snail sparrow squirrel swan toad tortoise"""
    ),
    "instrument": _words(
        """bagpipe banjo bassoon bugle cello clarinet cornet cymbal drum dulcimer fiddle flute
        gong guitar harmonica harp horn kazoo viola lyre mandolin piano piccolo recorder rattle
        tambourine triangle trombone trumpet tuba whistle zither"""
    ),
    "year": tuple(str(year) for year in range(601, 697, 3)),
}
"""Possible values by attribute; a guess is right about once in 24 to 32 times."""
