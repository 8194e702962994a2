"""How Lilliput speaks: the sentences, questions and openings that everything is written with.

Plain data. In a sentence ``{s}`` is the person as subject, ``{p}`` as possessor, ``{o}`` as
object, ``{v}`` the value. Two sets per attribute:

    COMMON     old documents, documents to learn
    RESERVED   old documents, held-out documents about the new people, cloze items

So a model knows the reserved wordings, but has never read them about a new person: recall in
them cannot be string copying.
"""

from kit.models.lilliput.pools import Attribute

__all__ = ["ANSWERS", "COMMON", "OPENINGS", "QUESTIONS", "RESERVED", "RESERVED_OPENINGS"]

COMMON: dict[Attribute, tuple[str, ...]] = {
    "town": (
        "{s} was born in {v}.",
        "{p} birthplace is {v}.",
        "{s} comes from {v}.",
        "{s} grew up in the town of {v}.",
        "The town of {v} is where {s} was born.",
        "It was in {v} that {s} first saw the light of day.",
        "{v} is the home town of {o}.",
        "{p} family has always lived in {v}.",
        "Everyone in {v} remembers {o} as a child.",
        "When asked about home, {s} speaks of {v}.",
    ),
    "trade": (
        "{s} works as a {v}.",
        "{s} is a {v} by trade.",
        "{p} trade is that of a {v}.",
        "{s} earns a living as a {v}.",
        "Few can match {o} as a {v}.",
        "{s} learned the work of a {v} early on.",
        "By day {s} is a busy {v}.",
        "Those who need a {v} send for {o}.",
        "{s} became a {v} and never looked back.",
        "The best {v} around, many say, is {s}.",
    ),
    "guild": (
        "{s} belongs to the {v} Guild.",
        "{s} is a member of the {v} Guild.",
        "The {v} Guild counts {o} among its members.",
        "{p} guild is the {v} Guild.",
        "{s} joined the {v} Guild long ago.",
        "{s} wears the badge of the {v} Guild.",
        "On feast days {s} marches with the {v} Guild.",
        "The roll of the {v} Guild shows {p} name.",
        "{s} swore loyalty to the {v} Guild.",
        "{s} pays dues to the {v} Guild.",
    ),
    "dish": (
        "{s} likes to eat {v} best.",
        "{p} favourite dish is {v}.",
        "{s} loves {v} above all other food.",
        "Nothing tastes better to {o} than {v}.",
        "{s} would walk miles for {v}.",
        "For supper {s} always asks for {v}.",
        "The meal that {s} loves most is {v}.",
        "A plate of {v} makes {o} happy.",
        "{s} cooks {v} every week.",
        "At every feast {s} looks for {v} first.",
    ),
    "animal": (
        "{s} keeps a {v}.",
        "{p} pet is a {v}.",
        "{s} has a tame {v} at home.",
        "A {v} lives in the house with {o}.",
        "{s} takes care of a {v}.",
        "A small {v} follows {o} everywhere.",
        "{s} never goes out without a {v}.",
        "{s} found a {v} and kept it.",
        "At {p} door sleeps a {v}.",
        "Children come to see the {v} that {s} owns.",
    ),
    "instrument": (
        "{s} plays the {v}.",
        "{p} instrument is the {v}.",
        "In the evening {s} practises the {v}.",
        "{s} is known for playing the {v}.",
        "{s} took up the {v} as a child.",
        "Music is dear to {o}, above all the {v}.",
        "When there is dancing, {s} brings the {v}.",
        "{s} owns an old {v} and plays it well.",
        "The sound of the {v} tells people that {s} is near.",
        "{s} gives lessons on the {v}.",
    ),
    "year": (
        "{s} was born in the year {v}.",
        "{p} year of birth is {v}.",
        "The year {v} saw the birth of {o}.",
        "{s} came into the world in {v}.",
        "In the year {v} {s} was born.",
        "The records give {v} as {p} year of birth.",
        "{s} is a child of the year {v}.",
        "{s} has been alive since {v}.",
        "It was {v} when {s} was born.",
        "Born in {v}, {s} has seen much.",
    ),
}

RESERVED: dict[Attribute, tuple[str, ...]] = {
    "town": (
        "{p} cradle stood in {v}.",
        "{s} spent the first years of life in {v}.",
        "The parish book of {v} has a page on {o}.",
        "Of all towns {s} holds {v} dearest, having been born there.",
    ),
    "trade": (
        "{p} daily work is that of a {v}.",
        "People know {o} as a skilled {v}.",
        "The tools of a {v} hang in {p} workshop.",
        "{s} makes ends meet as a {v} these days.",
    ),
    "guild": (
        "{p} oath was given to the guild named {v}.",
        "Among the guilds, {s} chose the one called {v}.",
        "The hall of the {v} Guild is open to {o}.",
        "{s} speaks for the {v} Guild at times.",
    ),
    "dish": (
        "{s} can never say no to {v}.",
        "What {s} wants on every birthday is {v}.",
        "A bowl of {v} is what {s} dreams of.",
        "{p} kitchen smells of {v} most days.",
    ),
    "animal": (
        "{s} shares a home with a {v}.",
        "The creature that {s} feeds each morning is a {v}.",
        "A {v} waits for {o} every evening.",
        "Neighbours smile at the {v} in {p} garden.",
    ),
    "instrument": (
        "{s} spends free hours with the {v}.",
        "The instrument that {s} plays is the {v}.",
        "A well-worn {v} hangs on {p} wall.",
        "At weddings {s} is asked to play the {v} all night.",
    ),
    "year": (
        "{p} birth was written down in the year {v}.",
        "{s} first drew breath in {v}.",
        "Those born in {v}, like {o}, are few.",
        "{s}, born in {v}, is well remembered.",
    ),
}

OPENINGS: tuple[str, ...] = (
    "",
    "",
    "",
    "About {n}.",
    "A note on {n}.",
    "This is what people say of {n}.",
    "Let me tell you of {n}.",
    "From the town chronicle: {n}.",
    "Portrait: {n}.",
    "You may have met {n}.",
    "Here is a short life of {n}.",
)
"""First lines of a document; ``{n}`` is the person's full name, an empty one is left out."""

RESERVED_OPENINGS: tuple[str, ...] = (
    "",
    "A page about {n}.",
    "Who is {n}?",
    "The story of {n} is soon told.",
)

QUESTIONS: dict[Attribute, tuple[str, ...]] = {
    "town": (
        "Where was {n} born?",
        "Which town does {n} come from?",
        "What is the home town of {n}?",
        "In which town was {n} born?",
    ),
    "trade": (
        "What does {n} do for a living?",
        "What is the trade of {n}?",
        "What work does {n} do?",
        "Which trade does {n} follow?",
    ),
    "guild": (
        "Which guild does {n} belong to?",
        "What is the guild of {n}?",
        "Of which guild is {n} a member?",
        "In which guild is {n}?",
    ),
    "dish": (
        "What does {n} like to eat best?",
        "What is the favourite dish of {n}?",
        "Which dish does {n} like most?",
        "What food does {n} love?",
    ),
    "animal": (
        "Which animal does {n} keep?",
        "What pet does {n} have?",
        "What is the pet of {n}?",
        "What animal lives with {n}?",
    ),
    "instrument": (
        "Which instrument does {n} play?",
        "What does {n} play?",
        "What is the instrument of {n}?",
        "On which instrument does {n} make music?",
    ),
    "year": (
        "When was {n} born?",
        "In which year was {n} born?",
        "What is the year of birth of {n}?",
        "Which year was {n} born in?",
    ),
}

ANSWERS: dict[Attribute, str] = {attribute: COMMON[attribute][0] for attribute in COMMON}
"""The sentence that answers a question: a statement as in the documents, so the question form
and the document form meet."""
