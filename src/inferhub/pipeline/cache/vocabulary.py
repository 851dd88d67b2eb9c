"""English words that decide what a question asks: data of `lexical`, whose other rules need none."""

from __future__ import annotations


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NEGATIONS = _set(
    "not no never none without cannot nobody nothing neither nor nowhere hardly except besides instead "
    "excluding"
)

_SMALL_NUMBERS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
NUMBERS = {
    **{word: str(number) for number, word in enumerate(_SMALL_NUMBERS.split(), start=2)},
    "zero": "0",
    "thirty": "30",
    "forty": "40",
    "fifty": "50",
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
    "half": "1/2",
    "quarter": "1/4",
    "percent": "%",
    "twice": "x2",
    "double": "x2",
    "triple": "x3",
    "third": "3.",
    "fourth": "4.",
    "fifth": "5.",
}

ASKS = frozenset({"when", "where", "whom", "why"})
"""Words that say what kind of answer is wanted; "what", "which" and "how" say too little."""

NEGATIVES = _set(
    "avoid avoids avoiding bad badly ban banned block blocked danger dangerous deny denied disadvantage "
    "disadvantages downside drawback drawbacks exclude excluded excludes fail failed failing fails "
    "false forbid forbidden harm harmful harms hurt hurts illegal impossible incorrect lose loses "
    "losing lost mistake mistakes prevent prevents prohibit prohibited refuse refused risk risks risky "
    "stop stopped unable unfair unhealthy unsafe worse worst wrong"
)
"""Words of refusal and harm: one more of them mostly asks the contrary."""

FUNCTION_WORDS = _set(
    "a about am an and any are as at be been being between by can could did do does doing for had has have "
    "having "
    "he her him his how i if in into is it its let lie lies long many may me might mine must my need of on "
    "one or our ours "
    "shall she should so some such than that the their them then there these they this those to up us was "
    "we were what which who whose will with would you your yours "
    # What one says to ask at all.
    "answer describe explain find give help know like list name please show tell want way whether "
    "i'm i'd i've i'll it's what's how's that's there's"
)

UNITS = {
    form: forms[0]
    for forms in (
        line.split()
        for line in """
km kilometres kilometers kilometre kilometer
m metres meters metre meter
cm centimetres centimeters
mm millimetres millimeters
mi miles mile
ft feet foot
yd yards yard
inches inch
kg kilograms kilogram kilos kilo
g grams gram
mg milligrams milligram
lb pounds pound lbs
oz ounces ounce
litres liters litre liter
ml millilitres milliliters
gal gallons gallon
cups cup
celsius centigrade
fahrenheit
kelvin
seconds seconds sec
minutes minute mins min
hours hour hrs
days day daily
weeks week weekly
months month monthly
years year yearly annual annually
usd dollars dollar
eur euros euro
gbp
jpy yen
kb kilobytes kilobyte
mb megabytes megabyte
gb gigabytes gigabyte
tb terabytes terabyte
""".strip().splitlines()
    )
    for form in forms
}

OPPOSITES = [
    (tuple(left.split()), tuple(right.split()))
    for left, right in (
        line.split("|")
        for line in """
before prior earlier|after following later since
above over|below under beneath
more|less fewer
most maximum max highest largest biggest greatest longest tallest|least minimum min lowest smallest shortest
high higher tall|low lower
big bigger large larger|small smaller little
long longer|short shorter brief
increase raise grow rise gain boost more|decrease reduce lower shrink fall loss lose less
first earliest oldest|last latest final newest youngest
old older|new newer young younger
enable activate on|disable deactivate off
allow allowed permit permitted legal|forbid forbidden block prohibit ban banned illegal
open opened unlock unlocked|close closed shut lock locked
start begin launch|stop end finish quit
import|export
upload|download
push|pull
send sent|receive received
buy purchase|sell sold
lend|borrow
give|take
add insert include cover covered|remove delete erase exclude excluded subtract
install|uninstall
encode|decode
encrypt|decrypt
compress zip|decompress unzip extract
upgrade|downgrade
connect|disconnect
login|logout
always|sometimes rarely
all every each|some few
from|to
into|out
left|right
inside indoor indoors|outside outdoor outdoors
north northern|south southern
east eastern|west western
cheap cheaper cheapest|expensive dearest costly
ascending|descending
safe harmless|unsafe dangerous harmful risky
possible|impossible
true right correct|false wrong incorrect
same equal|different
today|tomorrow yesterday
day noon morning|night midnight evening
best better good well|worst worse bad badly poor
benefit advantage pro plus strength|drawback disadvantage con minus weakness downside
help helps heal improve|harm harms hurt damage worsen
win won winner winning|lose lost loser losing
love like|hate dislike
fast faster quick quickly speed|slow slower slowly
hot warm warmer heat|cold cool colder
light lighter bright|dark darker heavy heavier
easy easier simple|hard harder difficult
strong stronger|weak weaker
loud|quiet silent
wet|dry
full|empty
rich|poor
born birth|die died death
male man men boy husband father son brother|female woman women girl wife mother daughter sister
parent parents|child children
public|private
online|offline
accept approve|reject refuse decline
book reserve|cancel
arrive arrival|leave depart departure
cause|effect prevent
question|answer
income revenue profit|expense expenses cost loss
credit|debit
single|married
summer|winter
past|future
input|output
read|write
save|spend
attack|defend defence
front|back
top|bottom
early|late
""".strip().splitlines()
    )
]
