"""Question templates for the calibration of the semantic cache: sentences of our own, with slots to fill.

A template has wordings that mean the same, and wordings that turn the meaning around or ask for something else.
"""
# ruff: noqa: E501 - a line is a sentence

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    wordings: tuple[str, ...]
    opposites: tuple[str, ...]
    """Another answer: negated, reversed, or about something near."""
    slots: Mapping[str, tuple[str, ...]]
    """By name; `number…`, `name…`, `unit…` or `entity…` says what kind of thing it is."""


def _t(wordings: Sequence[str], opposites: Sequence[str], **slots: str) -> Template:
    return Template(
        tuple(wordings),
        tuple(opposites),
        {name: tuple(part.strip() for part in values.split(",")) for name, values in slots.items()},
    )


_CITIES = "Lisbon, Oslo, Vienna, Nairobi, Quito, Hanoi, Dublin, Lima"
_PEOPLE = "Anna, Boris, Chidi, Dolores, Emre, Fatima, Goran, Hana"
_ANIMALS = "dog, cat, horse, rabbit, parrot, hamster"
_NUMBERS = "3, 4, 7, 12, 15, 30, 45, 90"
_YEARS = "1848, 1905, 1969, 1989, 2001, 2015"

# The threshold, and the guard in `pipeline/cache/lexical.py`, were made with these in view.
CALIBRATION = (
    _t(
        ["What is the capital of {name}?", "Which city is the capital of {name}?", "Name the capital city of {name}.", "Tell me the capital of {name}"],
        ["Which city is not the capital of {name}?", "What is the largest city of {name} that is not its capital?"],
        name="Portugal, Norway, Kenya, Peru, Vietnam, Ireland, Chile, Ghana",
    ),
    _t(
        ["How do I boil an egg for {number} minutes?", "How should I cook an egg in boiling water for {number} minutes?", "What is the way to boil an egg {number} minutes long?"],
        ["How do I cook an egg for {number} minutes without boiling it?", "Why should I never boil an egg for {number} minutes?"],
        number="3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
    ),
    _t(
        ["How far is {name} from {name2}?", "What is the distance between {name} and {name2}?", "How many kilometres lie between {name} and {name2}?"],
        ["How long is the flight from {name} to {name2}?", "How far is {name} from {name2} not counting the sea?"],
        name=_CITIES, name2="Paris, Cairo, Tokyo, Boston, Delhi",
    ),
    _t(
        ["Can my {entity} eat grapes?", "Is it safe for my {entity} to eat grapes?", "Are grapes okay for a {entity}?"],
        ["Can my {entity} not eat grapes?", "Is it dangerous for my {entity} to eat grapes?", "Which fruit can my {entity} eat instead of grapes?"],
        entity=_ANIMALS,
    ),
    _t(
        ["How do I enable two-factor login in {name}?", "How can I turn on two-factor login in {name}?", "What are the steps to activate two-factor login for {name}?"],
        ["How do I disable two-factor login in {name}?", "How can I turn off two-factor login in {name}?"],
        name="Gmail, Slack, GitHub, Dropbox, Zoom, Notion",
    ),
    _t(
        ["Convert {number} miles to {unit}.", "How many {unit} are {number} miles?", "What is {number} miles in {unit}?"],
        ["Convert {number} {unit} to miles.", "How many miles are {number} {unit}?"],
        number=_NUMBERS, unit="kilometres, metres, feet, yards",
    ),
    _t(
        ["What happened in {number}?", "Which events took place in {number}?", "Tell me what went on in the year {number}"],
        ["What did not happen in {number}?", "What happened before {number}?", "What happened after {number}?"],
        number=_YEARS,
    ),
    _t(
        ["How do I sort a list in {name}?", "What is the way to sort a list in {name}?", "Show me how to sort a list with {name}"],
        ["How do I sort a list in {name} in descending order?", "How do I shuffle a list in {name}?", "How do I copy a list in {name} without sorting it?"],
        name="Python, Java, Rust, Kotlin, Ruby, Haskell",
    ),
    _t(
        ["Is {number} a prime number?", "Is the number {number} prime?", "Tell me whether {number} is a prime"],
        ["Is {number} not a prime number?", "Which prime comes after {number}?"],
        number="17, 21, 57, 91, 97, 101, 119, 211",
    ),
    _t(
        ["What should I wear when it is {number} degrees {unit}?", "Which clothes fit a day of {number} degrees {unit}?", "How should I dress at {number} degrees {unit}?"],
        ["What should I not wear when it is {number} degrees {unit}?", "Which clothes are wrong for {number} degrees {unit}?"],
        number="5, 12, 20, 28, 33, 41", unit="Celsius, Fahrenheit",
    ),
    _t(
        ["When was {name} born?", "What is the birth date of {name}?", "On which day was {name} born?"],
        ["When did {name} die?", "Where was {name} born?", "What is the date of death of {name}?"],
        name="Marie Curie, Alan Turing, Frida Kahlo, Isaac Newton, Ada Lovelace, Nikola Tesla",
    ),
    _t(
        ["How often should I water a {entity}?", "How many times a week does a {entity} need water?", "What is the right watering interval for a {entity}?"],
        ["How much water should I give a {entity}?", "How long can a {entity} go without water?"],
        entity="cactus, fern, rose, tomato plant, bonsai, orchid",
    ),
    _t(
        ["Give me {number} tips for a job interview.", "List {number} pieces of advice for job interviews.", "What are {number} good tips for an interview for a job?"],
        ["Give me {number} things to avoid in a job interview.", "List {number} mistakes in job interviews."],
        number=_NUMBERS,
    ),
    _t(
        ["Write a short poem about the {entity}.", "Compose a brief poem on the {entity}.", "I would like a small poem about the {entity}"],
        ["Write a long poem about the {entity}.", "Write a short story about the {entity}."],
        entity="moon, sea, wind, winter, forest, desert",
    ),
    _t(
        ["How do I remove a {entity} stain from a shirt?", "What gets {entity} stains out of a shirt?", "How can I get rid of a {entity} stain on my shirt?"],
        ["How do I keep a {entity} stain from ever coming onto a shirt?", "What does not help against a {entity} stain on a shirt?"],
        entity="coffee, wine, grass, ink, blood, oil",
    ),
    _t(
        ["What is {number} percent of {number2}?", "How much is {number} percent of {number2}?", "Calculate {number} % of {number2}"],
        ["Of which number is {number2} {number} percent?", "What is {number2} minus {number} percent?"],
        number="5, 8, 15, 20, 35", number2="80, 120, 250, 640, 1000",
    ),
    _t(
        ["Translate 'good morning' into {name}.", "How do you say 'good morning' in {name}?", "What is 'good morning' in {name}?"],
        ["Translate 'good night' into {name}.", "Translate 'good morning' from {name} into English."],
        name="Spanish, Finnish, Swahili, Korean, Polish, Turkish",
    ),
    _t(
        ["Does the warranty cover {entity} damage?", "Is {entity} damage covered by the warranty?", "Will the warranty pay for {entity} damage?"],
        ["Which damage does the warranty cover besides {entity} damage?", "Is {entity} damage excluded from the warranty?", "Does the warranty not cover {entity} damage?"],
        entity="water, fire, frost, transport, battery, screen",
    ),
    _t(
        ["Should I take {number} mg of ibuprofen before a meal?", "Is it right to take {number} mg of ibuprofen before eating?", "Do I take {number} mg of ibuprofen before I eat?"],
        ["Should I take {number} mg of ibuprofen after a meal?", "Should I not take {number} mg of ibuprofen before a meal?"],
        number="100, 200, 400, 600, 800",
    ),
    _t(
        ["How do I open port {number} in the firewall?", "How can port {number} be opened in the firewall?", "What is the command to open firewall port {number}?"],
        ["How do I close port {number} in the firewall?", "How do I block port {number} in the firewall?"],
        number="22, 80, 443, 3306, 5432, 8080",
    ),
    _t(
        ["Who wrote the letter to {name}?", "By whom was the letter to {name} written?", "Which person wrote {name} the letter?"],
        ["To whom did {name} write the letter?", "Who did not write the letter to {name}?"],
        name=_PEOPLE,
    ),
    _t(
        ["Is {entity} good for the heart?", "Does {entity} help the heart?", "Is eating {entity} healthy for your heart?"],
        ["Is {entity} bad for the heart?", "Does {entity} harm the heart?", "Is {entity} not good for the heart?"],
        entity="garlic, salmon, chocolate, butter, spinach, bacon",
    ),
    _t(
        ["Book a table for {number} people on {name}.", "Reserve a table for {number} on {name}.", "I need a table for {number} persons on {name}"],
        ["Cancel the table for {number} people on {name}.", "Is there no table for {number} people on {name}?"],
        number="2, 3, 4, 5, 6, 8", name="Monday, Tuesday, Wednesday, Thursday, Friday, Sunday",
    ),
    _t(
        ["How do I upgrade {name} to version {number}?", "What are the steps to update {name} to version {number}?", "How can I move {name} up to version {number}?"],
        ["How do I downgrade {name} from version {number}?", "How do I keep {name} from upgrading to version {number}?"],
        name="Django, Postgres, Ubuntu, Node, Kubernetes", number="4, 11, 15, 18, 22",
    ),
    _t(
        ["What are the benefits of {entity}?", "Which advantages does {entity} have?", "Why is {entity} a good thing?"],
        ["What are the drawbacks of {entity}?", "Which disadvantages does {entity} have?", "Why is {entity} a bad thing?"],
        entity="remote work, solar power, public transport, fasting, meditation, homeschooling",
    ),
    _t(
        ["Can I fly with a {entity} in my hand luggage?", "Is a {entity} allowed in hand luggage on a plane?", "May I carry a {entity} in my cabin bag?"],
        ["Can I fly with a {entity} in my checked luggage?", "Is a {entity} forbidden in hand luggage?"],
        entity="knife, lighter, laptop, bottle of water, razor, power bank",
    ),
    _t(
        ["How much does {number} {unit} of gold cost?", "What is the price of {number} {unit} of gold?", "What do I pay for {number} {unit} of gold?"],
        ["How much gold do I get for {number} dollars?", "How much do {number} {unit} of silver cost?"],
        number="2, 5, 10, 20, 50", unit="grams, ounces, kilograms, pounds",
    ),
    _t(
        ["What is the tallest mountain in {name}?", "Which mountain in {name} is the highest?", "Name the highest peak of {name}"],
        ["What is the longest river in {name}?", "What is the lowest point in {name}?"],
        name="Japan, Mexico, Spain, Iran, Canada, Turkey",
    ),
    _t(
        ["Summarise the plot of {name}.", "Give me a summary of the story of {name}.", "What is the plot of {name} in short?"],
        ["Summarise the critics' reviews of {name}.", "Summarise the plot of {name} without giving away the end."],
        name="Hamlet, Dracula, Moby Dick, Emma, Ulysses, Faust",
    ),
    _t(
        ["How do I unlock my phone when I forgot the {entity}?", "I forgot the {entity} of my phone, how do I unlock it?", "What can I do to unlock a phone whose {entity} I forgot?"],
        ["How do I lock my phone with a {entity}?", "How do I change the {entity} of my phone?"],
        entity="password, pattern, PIN, passcode",
    ),
    _t(
        ["Is it legal to fish in {name} without a licence?", "May I go fishing in {name} with no licence?", "Am I allowed to fish without a licence in {name}?"],
        ["Is it legal to fish in {name} with a licence?", "Is it illegal to fish in {name} without a licence?"],
        name="Texas, Ontario, Bavaria, Tasmania, Scotland, Oregon",
    ),
    _t(
        ["How long does it take to learn the {entity}?", "How much time do I need to learn to play the {entity}?", "In what time can one learn the {entity}?"],
        ["How do I learn the {entity}?", "How long does it take to build the {entity}?"],
        entity="violin, piano, guitar, drums, flute, cello",
    ),
    _t(
        ["Does {name} work on Sundays?", "Is {name} working on Sundays?", "Is Sunday a working day for {name}?"],
        ["Does {name} not work on Sundays?", "Does {name} work on Saturdays?"],
        name=_PEOPLE,
    ),
    _t(
        ["Why is my {entity} so slow?", "What makes my {entity} that slow?", "My {entity} is very slow, why?"],
        ["Why is my {entity} so fast?", "Why is my {entity} so loud?"],
        entity="computer, internet, printer, phone, car, website",
    ),
    _t(
        ["What is the time in {name} when it is noon in {name2}?", "If it is noon in {name2}, what time is it in {name}?", "At noon in {name2}, what do clocks in {name} show?"],
        ["What is the time in {name2} when it is noon in {name}?", "If it is midnight in {name2}, what time is it in {name}?"],
        name=_CITIES, name2="Sydney, Denver, Mumbai, Moscow, Seoul",
    ),
    _t(
        ["How many calories are in {number} {unit} of rice?", "What is the number of calories of {number} {unit} of rice?", "How many calories do {number} {unit} of rice have?"],
        ["How much protein is in {number} {unit} of rice?", "How many calories are in {number} {unit} of bread?"],
        number="50, 100, 150, 200, 300", unit="grams, ounces, cups, spoons",
    ),
    _t(
        ["How do I increase the {entity} of a photo?", "How can I raise the {entity} of a photo?", "What do I do for more {entity} in a photo?"],
        ["How do I decrease the {entity} of a photo?", "How do I get less {entity} in a photo?"],
        entity="contrast, brightness, sharpness, saturation, resolution",
    ),
    _t(
        ["Which team won the final in {number}?", "Who was the winner of the final in {number}?", "What team was victorious in the {number} final?"],
        ["Which team lost the final in {number}?", "Who did not reach the final in {number}?"],
        number="1974, 1986, 1998, 2006, 2014, 2018",
    ),
    _t(
        ["Do I need a visa to travel to {name}?", "Is a visa required for a trip to {name}?", "Must I have a visa for travelling to {name}?"],
        ["Can I travel to {name} without a visa?", "How do I get a visa for {name}?"],
        name="China, Brazil, Nigeria, Canada, Egypt, Nepal",
    ),
    _t(
        ["How do I save {number} {unit} a month?", "What is a way to put aside {number} {unit} each month?", "How can I set {number} {unit} aside monthly?"],
        ["How do I spend {number} {unit} a month?", "How do I save {number} {unit} a year?"],
        number="50, 100, 250, 500", unit="euros, dollars, francs, yen",
    ),
    _t(
        ["Is the {entity} older than the {entity2}?", "Was the {entity} there before the {entity2}?", "Did the {entity} exist earlier than the {entity2}?"],
        ["Is the {entity2} older than the {entity}?", "Is the {entity} not older than the {entity2}?"],
        entity="wheel, plough, clock, bow", entity2="compass, printing press, steam engine, telescope",
    ),
    _t(
        ["What is the best season to visit {name}?", "When is the best time of year to go to {name}?", "In which season should I visit {name}?"],
        ["What is the worst season to visit {name}?", "In which season should I not visit {name}?"],
        name="Iceland, Morocco, Thailand, Patagonia, Alaska, Sicily",
    ),
)  # fmt: skip

# Written after the guard in `pipeline/cache/lexical.py` was finished, and not looked at while it was made.
JUDGEMENT = (
    _t(
        ["My parcel with the number {number} has not arrived, where is it?", "Where is my parcel {number}, which did not arrive yet?", "Parcel {number} is not here yet, where is it now?"],
        ["My parcel with the number {number} has arrived, where do I sign?", "Where do I send parcel {number} back to?"],
        number="1183, 2047, 3391, 5520, 7714, 9902",
    ),
    _t(
        ["Who painted the {name}?", "Which artist painted the {name}?", "Who is the painter of the {name}?"],
        ["Who stole the {name}?", "Who bought the {name}?", "Where does the {name} hang?"],
        name="Mona Lisa, Night Watch, Guernica, Birth of Venus, Starry Night, Last Supper",
    ),
    _t(
        ["How do I change the {entity} of my bicycle?", "How can I replace the {entity} on a bicycle?", "What are the steps for changing a bicycle's {entity}?"],
        ["How do I clean the {entity} of my bicycle?", "How do I keep the {entity} of my bicycle from wearing out?"],
        entity="chain, tyre, saddle, brakes, pedals, handlebar",
    ),
    _t(
        ["What is the population of {name}?", "How many people live in {name}?", "How many inhabitants does {name} have?"],
        ["What is the area of {name}?", "How many people left {name} last year?", "How many tourists visit {name}?"],
        name="Sweden, Bolivia, Jordan, Malaysia, Senegal, Croatia",
    ),
    _t(
        ["What is {number} plus {number2}?", "Add {number} and {number2}.", "What is the sum of {number} and {number2}?"],
        ["What is {number} times {number2}?", "Subtract {number} from {number2}.", "What is {number} divided by {number2}?"],
        number="14, 23, 58, 76, 91", number2="6, 17, 32, 205, 411",
    ),
    _t(
        ["Is it possible to get a refund within {number} {unit}?", "Can I get my money back within {number} {unit}?", "Am I able to return it for a refund within {number} {unit}?"],
        ["Is it possible to get a refund after more than {number} {unit}?", "Is it impossible to get a refund within {number} {unit}?"],
        number="7, 14, 21, 30, 60", unit="days, weeks, months, hours",
    ),
    _t(
        ["Why do {entity} migrate?", "What is the reason that {entity} migrate?", "For what reason do {entity} go on migration?"],
        ["Why do {entity} not migrate?", "When do {entity} migrate?", "Where do {entity} migrate to?"],
        entity="storks, whales, butterflies, geese, salmon, antelopes",
    ),
    _t(
        ["How do I convert a {entity} file to {name}?", "How can I turn a {entity} file into {name}?", "What tool makes {name} out of a {entity} file?"],
        ["How do I convert {name} to a {entity} file?", "How do I merge two {entity} files?"],
        entity="spreadsheet, text, image, sound, video", name="PDF, CSV, XML, HTML, JSON",
    ),
    _t(
        ["At what temperature does {entity} melt?", "What is the melting point of {entity}?", "How hot must {entity} be to melt?"],
        ["At what temperature does {entity} boil?", "What is the boiling point of {entity}?", "At what temperature does {entity} freeze again?"],
        entity="iron, copper, lead, tin, wax, glass",
    ),
    _t(
        ["Please write an email to {name} that accepts the offer.", "Draft an email to {name} in which I accept the offer.", "Write {name} an email saying that I accept the offer"],
        ["Please write an email to {name} that declines the offer.", "Draft an email to {name} in which I reject the offer.", "Write {name} an email saying that I do not accept the offer"],
        name="Ingrid, Jamal, Kenji, Lucia, Mehmet, Nadia",
    ),
    _t(
        ["How much sleep does a {number} year old child need?", "How many hours should a child of {number} years sleep?", "What amount of sleep is right for a {number} year old?"],
        ["How much sleep does a {number} month old baby need?", "How little sleep can a {number} year old child bear?"],
        number="2, 4, 6, 9, 11, 14",
    ),
    _t(
        ["Did {name} win the election?", "Was {name} the winner of the election?", "Was the election won by {name}?"],
        ["Did {name} lose the election?", "Was {name} defeated in the election?", "Did {name} cheat in the election?"],
        name="Olsen, Petrov, Quinn, Rossi, Suzuki, Tran",
    ),
    _t(
        ["What is the difference between {entity} and {entity2}?", "How does {entity} differ from {entity2}?", "In what way are {entity} and {entity2} different?"],
        ["What do {entity} and {entity2} have in common?", "Which is better, {entity} or {entity2}?"],
        entity="butter, cream, yoghurt, milk", entity2="margarine, cheese, ice cream, kefir",
    ),
    _t(
        ["How do I stop my {entity} from making noise at night?", "What keeps a {entity} from being noisy during the night?", "How can I get my {entity} to be quiet at night?"],
        ["Why does my {entity} make noise at night?", "How do I record the noise that my {entity} makes at night?"],
        entity="fridge, baby, neighbour, heater, dishwasher, dog",
    ),
    _t(
        ["What does the error {number} mean?", "What is the meaning of error {number}?", "Explain error {number} to me"],
        ["How do I get rid of error {number}?", "What does the warning {number} mean?"],
        number="301, 404, 418, 502, 503, 1045",
    ),
    _t(
        ["Is a {entity} a mammal?", "Does a {entity} belong to the mammals?", "Are {entity}s mammals?"],
        ["Is a {entity} a reptile?", "Is a {entity} not a mammal?", "Does a {entity} eat mammals?"],
        entity="bat, whale, shark, penguin, dolphin, platypus",
    ),
    _t(
        ["How do I say no to a {entity} politely?", "What is a polite way of turning down a {entity}?", "How can I refuse a {entity} without being rude?"],
        ["How do I say yes to a {entity}?", "How do I ask politely for a {entity}?"],
        entity="promotion, date, invitation, gift, discount, favour",
    ),
    _t(
        ["Set the alarm for {number} in the morning.", "Wake me up at {number} in the morning.", "I want the alarm to ring at {number} a.m."],
        ["Set the alarm for {number} in the evening.", "Switch off the alarm for {number} in the morning.", "Do not wake me up at {number} in the morning."],
        number="5, 6, 7, 8, 5:30, 6:45",
    ),
    _t(
        ["Which countries border {name}?", "What are the neighbouring countries of {name}?", "With which countries does {name} share a border?"],
        ["Which countries do not border {name}?", "Which seas border {name}?", "Which countries are at war with {name}?"],
        name="Austria, Laos, Mali, Uruguay, Belarus, Zambia",
    ),
    _t(
        ["How do I set the {entity} to {number} percent?", "What sets the {entity} to {number} percent?", "I want the {entity} at {number} percent, how?"],
        ["How do I lower the {entity} by {number} percent?", "How do I raise the {entity} by {number} percent?"],
        entity="volume, zoom, brightness, humidity, opacity", number="10, 25, 40, 60, 75",
    ),
    _t(
        ["Was {name} a king?", "Did {name} reign as a king?", "Is it true that {name} was a king?"],
        ["Was {name} never a king?", "Who killed {name}?", "Was {name} a queen?", "Is it false that {name} was a king?"],
        name="Arthur, Barbarossa, Clovis, Darius, Ethelred, Ferdinand",
    ),
    _t(
        ["How many {unit} of paint do I need for {number} square metres?", "For {number} square metres, how many {unit} of paint are needed?", "What number of {unit} of paint covers {number} square metres?"],
        ["How many {unit} of paint are left after {number} square metres?", "How many square metres do {number} {unit} of paint cover?"],
        unit="litres, gallons, buckets, cans", number="12, 20, 35, 48, 70",
    ),
    _t(
        ["Should I invest in {entity} now?", "Is it a good moment to invest in {entity}?", "Is now the time to put money into {entity}?"],
        ["Should I sell my {entity} now?", "Should I stay away from {entity} now?", "Is it a bad moment to invest in {entity}?"],
        entity="gold, bonds, shares, property, oil, farmland",
    ),
    _t(
        ["Where can I park near {name}?", "What places to park are there near {name}?", "Is there a car park close to {name}?"],
        ["Where is parking forbidden near {name}?", "Where can I eat near {name}?", "How do I get to {name} without a car?"],
        name="Central Station, Hyde Park, the Louvre, Times Square, Alexanderplatz, Wembley",
    ),
    _t(
        ["What is the plural of '{entity}'?", "How is the plural of '{entity}' formed?", "What does '{entity}' become in the plural?"],
        ["What is the singular of '{entity}'?", "What is the opposite of '{entity}'?", "How is '{entity}' pronounced?"],
        entity="ox, mouse, leaf, index, crisis, sheep",
    ),
    _t(
        ["Delete all files older than {number} {unit}.", "Remove every file that is more than {number} {unit} old.", "I want all files deleted that are older than {number} {unit}"],
        ["Delete all files newer than {number} {unit}.", "Keep all files older than {number} {unit}.", "List all files older than {number} {unit}."],
        number="5, 10, 20, 40", unit="days, weeks, months, years",
    ),
    _t(
        ["Can {name} and {name2} be taken together?", "Is it fine to take {name} together with {name2}?", "May one combine {name} with {name2}?"],
        ["Is it dangerous to take {name} together with {name2}?", "Can {name} be replaced by {name2}?", "How long must one wait between {name} and {name2}?"],
        name="Aspirin, Zoloft, Xanax, Lipitor", name2="Tylenol, Prozac, Nexium, Viagra",
    ),
    _t(
        ["How do I make {entity} soup thicker?", "What thickens a {entity} soup?", "How can I thicken my {entity} soup?"],
        ["How do I make {entity} soup thinner?", "How do I keep {entity} soup from getting thick?", "How do I make {entity} soup less salty?"],
        entity="tomato, pumpkin, onion, lentil, leek, mushroom",
    ),
    _t(
        ["Does the train to {name} leave from platform {number}?", "Is platform {number} the one for the train to {name}?", "Is it platform {number} that the train to {name} leaves from?"],
        ["Does the train from {name} arrive at platform {number}?", "Does the train to {name} not leave from platform {number}?"],
        name="Bern, Ghent, Porto, Turin, York", number="1, 2, 5, 9, 14",
    ),
    _t(
        ["What should I do if I am {entity}?", "What helps me when I am {entity}?", "I am {entity}, what should I do?"],
        ["What should I do if I am not {entity}?", "What should I not do if I am {entity}?", "What should I do if my boss is {entity}?"],
        entity="lonely, bored, jealous, nervous, homesick, sleepless",
    ),
    _t(
        ["How many {entity} does a {entity2} have?", "What number of {entity} does a {entity2} have?", "A {entity2} has how many {entity}?"],
        ["How many {entity} does a {entity2} lose?", "How long are the {entity} of a {entity2}?"],
        entity="legs, eyes, teeth, hearts", entity2="spider, squid, crab, snail, lobster",
    ),
    _t(
        ["Tell me how to get from {name} to {name2} by train.", "How do I travel by train from {name} to {name2}?", "By train, what is the way from {name} to {name2}?"],
        ["Tell me how to get from {name2} to {name} by train.", "How do I travel from {name} to {name2} other than by train?", "How do I travel by bus from {name} to {name2}?"],
        name="Milan, Prague, Munich, Krakow", name2="Zagreb, Lyon, Bruges, Seville",
    ),
)  # fmt: skip
