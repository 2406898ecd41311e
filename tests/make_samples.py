# ruff: noqa: E501 - patterns stand on one line each
"""Writes samples/: python tests/make_samples.py. The sentences are patterns written by hand, filled by a fixed seed.

A pattern is one sentence as CoNLL-2003 cuts it: words between blanks, [a|b c] for a choice, {LOC} for a name or
another slot. `word/TAG` gives a part of speech where the lexicon below would be wrong. The three splits share no
pattern and no name. Parts of speech come from the lexicon, chunks from a few rules over them (see samples/README.md).
"""

import random
import re
from pathlib import Path

# ----------------------------------------------------------------------------------------------------------------------
# Names. No name of one split occurs in another.

FIRST = {
    "train": """Anna Thomas Maria Peter Laura Michael Julia David Sarah Robert Nina Paul Elena Martin Clara Daniel Sofia
        James Emma Richard Alice Mark Irene Steven Carla Patrick Helen Victor Diana Simon Ruth Oliver Teresa George
        Monica Andrew Leila Omar Fatima Hassan Mei Kenji Yuki Priya Arjun Kofi Amara Diego Lucia Pedro Olga Ivan Henrik
        Astrid Pierre Claire Giulia Marco Zoltan Ewa""",
    "validation": """Katherine William Rosa Edward Isabel Frank Naomi Lars Beatrice Hugo Vera Stefan Amina Rahul Chen
        Miguel Tatiana Louis Nadia Gareth""",
    "test": """Margaret Charles Eva Jonathan Carmen Philip Rachel Bjorn Valentina Jacques Miriam Dmitri Aisha Vikram
        Hiroshi Carlos Ludmila Antoine Joyce Owen""",
}
LAST = {
    "train": """Miller Novak Santos Fischer Okafor Lindgren Rossi Tanaka Dubois Kowalski Hughes Petrov Sharma Mensah
        Alvarez Becker Moreau Nakamura Jensen Costa Walsh Haddad Ivanova Schmidt Bianchi Larsen Ferreira Kim Osei
        Murphy Weber Romero Takeda Nilsson Conti Fraser Aziz Horvath Bennett Duarte Meyer Kaplan Reid Popov Castillo
        Vogel Brennan Sato Andersson Marino""",
    "validation": """Richardson Svensson Mukherjee Delgado Hoffmann Laurent Yamamoto Oduya Kovacs Gallagher Pereira
        Lindqvist Barros Whitfield Ahmadi Zielinski Caruso Mbeki Thornton Eriksen""",
    "test": """Harrington Johansson Banerjee Navarro Zimmermann Fontaine Watanabe Adeyemi Szabo Donnelly Carvalho
        Bergman Monteiro Ashworth Rahimi Wisniewski Ferrari Nkosi Pemberton Halvorsen""",
}
LOC = {
    "train": """London|Paris|Berlin|Madrid|Rome|Vienna|Oslo|Warsaw|Budapest|Athens|Dublin|Prague|Chicago|Boston|Denver|
        Seattle|Toronto|Mumbai|Beijing|Seoul|Cairo|Nairobi|Lagos|Sydney|Jakarta|Bogota|Santiago|Havana|Geneva|Milan|
        Munich|Marseille|Seville|Porto|Rotterdam|Gdansk|Kyoto|New York|San Francisco|Los Angeles|New Delhi|
        Cape Town|Buenos Aires|Hong Kong|Germany|France|Italy|Spain|Poland|Norway|Japan|India|China|Kenya|Egypt|
        Brazil|Chile|Canada|Mexico|Australia|South Africa|South Korea|Texas|Ohio|California|Bavaria|Scotland|
        Catalonia|Ontario|the Alps|the Danube|Lake Geneva|North Sea|Harbour Street|Mill Road|Station Square|
        Victoria Park|Bristol|Leeds|Manhattan|Kenton|Marlow|Ashford|Eastern Europe|West Africa""",
    "validation": """Lisbon|Stockholm|Amsterdam|Glasgow|Zurich|Naples|Krakow|Philadelphia|Detroit|Montreal|Karachi|
        Shanghai|Osaka|Casablanca|Accra|Melbourne|Manila|Lima|Caracas|Portugal|Sweden|Hungary|Vietnam|Ghana|
        Argentina|Ireland|Florida|Saxony|Queens|Castle Hill|the Rhine|the Andes|Southeast Asia|Church Lane|
        Sheffield|St Andrews""",
    "test": """Copenhagen|Brussels|Helsinki|Edinburgh|Basel|Turin|Bucharest|Houston|Atlanta|Vancouver|Lahore|Shenzhen|
        Nagoya|Tunis|Kampala|Auckland|Bangkok|Quito|Montevideo|Denmark|Finland|Romania|Thailand|Uganda|Uruguay|
        Belgium|Arizona|Tuscany|Harlem|Queen Street|the Baltic|the Rockies|Central America|Market Square|
        Liverpool|Port Elizabeth""",
}
ORG = {
    "train": """Reuters|Siemens|Toyota|Nokia|Microsoft|Boeing|Unilever|Oxfam|Greenpeace|UNESCO|NATO|the World Bank|
        the European Commission|the Red Cross|the Ministry of Health|the Department of Transport|Harlow & Finch|
        Northgate Bank|Union Bank|First Harbour Bank|Brightwater Energy|Delta Foods|Meridian Airlines|Alpine Railways|
        Kestrel Software|Orchard Systems|Blue Lantern Books|Pinewood Films|Stanford University|
        the University of Leiden|Kingsmead College|Ashby School|St Mary Hospital|the Royal Institute|
        Oakfield City Council|the Court of Appeal|the Labour Party|the Green Party|Chelsea|Juventus|Ajax|
        Red Star|Rangers|Milltown United|Riverside Rovers|Lakers|Falcon Motors|Titan Steel|Quantum Labs|Nordic Bank|
        Veritas Insurance|Cobalt Mining|Sunrise Textiles|Apex Consulting|Globe Media|Daily Herald|
        Evening Post|Intel|Oracle|Samsung|the Farmers Union|Hartwell Trust|Cedar Street Theatre|Paper Moon|Happy Robot|
        Open Harbour|Laughing Cow|Burning Bridge|Second Breakfast|Walking Tree|Loud Silence|Kind Stranger|Deep Mind|
        Shaking Hands|Running Water|Green Elephant|Snapdragon|Fiat|Volvo|Heineken|Nestle|Pfizer|Disney|Netflix|
        Spotify|Amazon|Twitter|Honda|Canon|Dell|Shell|Gazprom|Air France|Deutsche Bank|Goldman Sachs|Barclays|
        the Ministry of Finance|the Ministry of Defence|the Ministry of Agriculture|the Senate|the High Court|
        the United Nations|the European Union|the International Olympic Committee|Human Rights Watch|Yale University|
        the University of Milan|Trinity College|Westfield School|Grove Hospital|Lakeside Hospital|Feldman & Rowe|
        Hobbs & Daughters|Sandstone Bank|Pacific Insurance|Harrow Gas|Delta Chemicals|Comet Airways|Swift Freight|
        Saturn Games|The Times|Morning Chronicle|Barcelona|Liverpool Street FC|Bayern Munich|Inter Milan|Porto FC|
        Elmwood Town|Bradbury City|the Democratic Party|the Socialist Party|the Miners Union|the Nurses Union|
        Maple Press|Lantern Press|Springvale District Council|Norfield Town Council|Sparta|Dynamo Kiev""",
    "validation": """Ericsson|Volkswagen|Sony|Airbus|Amnesty International|UNICEF|the World Health Organization|
        the Ministry of Education|the Supreme Court|Barlow & Sons|Westbridge Bank|Copperfield Insurance|Solent Water|
        Omega Pharma|Silverline Airways|Harvard University|the University of Bergen|Fernhill School|
        Queen Anne Hospital|Granville Town Council|the Liberal Party|Arsenal|Valencia|Wolves|Castleford City|
        Tidewater Logistics|Raven Studios|Morning Star|Google|Adobe|the Teachers Union|Linden Press""",
    "test": """Philips|Renault|Hitachi|Lufthansa|Save the Children|Interpol|the International Monetary Fund|
        the Ministry of Justice|the Constitutional Court|Prescott & Lowe|Eastgate Bank|Beacon Insurance|Thornhill Gas|
        Gamma Chemicals|Polar Airways|Princeton University|the University of Ghent|Brookside School|
        St Luke Hospital|Wexley District Council|the Conservative Party|Everton|Benfica|Celtic|Marshfield Town|
        Ironbridge Freight|Juniper Games|Sunday Chronicle|Apple|Nvidia|the Dockers Union|Elm Tree Press""",
}
ADJ = {  # MISC as adjectives
    "train": """German French Italian Spanish Polish Norwegian Japanese Indian Chinese Kenyan Egyptian Brazilian Canadian
        Mexican Australian British Russian African European Greek Turkish American English Israeli Iranian Iraqi
        Syrian Korean Czech Ukrainian Croatian Serbian Cuban Peruvian Colombian Nigerian Moroccan Pakistani
        Indonesian Filipino Jewish Muslim Catholic Icelandic Bavarian Californian""",
    "validation": "Portuguese Swedish Hungarian Vietnamese Argentine Irish Dutch Scottish Asian Ghanaian",
    "test": "Danish Finnish Romanian Thai Ugandan Belgian Swiss Welsh Arab Austrian",
}
PEOPLE = {
    "train": "Germans Italians Poles Norwegians Indians Kenyans Brazilians Canadians Americans Russians Greeks",
    "validation": "Swedes Hungarians Argentines Scots Vietnamese",
    "test": "Danes Finns Romanians Belgians Austrians",
}
EVENT = {
    "train": """World Cup|Olympic Games|Nobel Prize|Easter|Christmas|Ramadan|Cold War|Tour de France|Davis Cup|
        Harvest Festival|Golden Globe|Spring Book Fair|Carnival|Euro 96|Six Nations|Passover|Hanukkah|Halloween|
        New Year|Super Bowl|Stanley Cup|World Series|Rugby Cup|Tony Award|Grammy|Oscar|Russian Revolution|
        First World War|Gulf War|Summer Games|Commonwealth Games|Music Festival|Masters|Formula One|UEFA Cup""",
    "validation": "Champions League|Thanksgiving|Booker Prize|Winter Games|Second World War|Jazz Festival|Pulitzer Prize",
    "test": "Ryder Cup|Diwali|Turner Prize|Asian Games|French Revolution|Film Festival|Grand Prix",
}
WORK = {
    "train": """Windows|Android|Excel|Python|Hamlet|Boeing 747|Corolla|Photoshop|Wikipedia|Treaty of Rome|
        Clean Air Act|The Silent River|Moby Dick|Kindle|Galaxy|Oktoberfest Cookbook|Java|King Lear|Romeo and Juliet|
        Word|Firefox|Chrome|Safari|Walkman|Game Boy|Nintendo|ThinkPad|Macintosh|Boeing 767|Airbus A380|Beetle|Mustang|
        The Winter House|The Last Harvest|The Blue Door|A Small Fire|Don Quixote|Star Wars|Titanic|Casablanca Nights|
        Human Rights Act|Child Safety Act|Treaty of Versailles|Wordle|Minecraft|Tetris|Debian|Skype|Zoom""",
    "validation": "Linux|iPhone|Macbeth|Airbus A320|PowerPoint|Data Protection Act|The Glass Mountain|PlayStation",
    "test": "Ubuntu|iPad|Othello|Boeing 737|Outlook|Freedom of Information Act|The Paper Garden|Xbox",
}
NAMES = {"LOC": LOC, "ORG": ORG, "EVENT": EVENT, "WORK": WORK}

# Other slots, the same in all splits.
FILL = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
    "num": "two three four five six seven eight nine ten twelve twenty 14 23 48 75 110 250",
    "year": "1987 1992 1996 2004 2011 2018 2023",
    "role": """director|spokesman|spokeswoman|chairman|minister|manager|editor|coach|captain|lawyer|professor|mayor|
        engineer|analyst|secretary""",
    "time": "8 a.m.|noon|3:30 p.m.|6 o'clock|half past nine",
}

# ----------------------------------------------------------------------------------------------------------------------
# Patterns

TRAIN = """
{PER} , {role} of {ORG} , said on {day} that the [new plant|second factory|old warehouse] in {LOC} would open before the end of the year .
{ORG} said on {day} it would [cut|create] {num} jobs in {LOC} [after a weak quarter|as demand for its products grows] .
{LOC} , {month} {num} - {ORG} has agreed to buy a [small|majority] stake in {ORG} , two people close to the talks said .
The {ADJ} government [rejected|welcomed] a proposal by {ORG} to [ban|limit] fishing off the coast of {LOC} .
{PER} won the {EVENT} on {day} , the first {ADJ} writer to do so since {year} .
Shares in {ORG} fell {num} percent in {LOC} after its {role} , {PER} , resigned without [warning|an explanation] .
Police in {LOC} arrested {num} people on {day} after a fight outside a bar .
Heavy rain closed the road between {LOC} and {LOC} for most of {day} .
{ORG} beat {ORG} 2-1 at home , with both goals from {PER} in the second half .
{LAST} , who joined {ORG} from {ORG} last summer , missed a penalty and was taken off at half-time .
" We expected a hard match , and we got one , " said {ORG} {role} {PER} .
A court in {LOC} sentenced {PER} to {num} years in prison for [fraud|taking bribes|selling stolen paintings] .
The {ADJ} {role} will meet her {ADJ} colleague in {LOC} next week to discuss [trade|water rights|the border] .
{PEOPLE} vote on {day} in an election that polls say is too close to call .
Rescue workers from {LOC} and {LOC} reached the village late on {day} .
An earthquake shook {LOC} early on {day} , but there were no reports of damage .
{PER} of {LOC} took the lead in the {EVENT} with a time of 3:42.18 .
{ORG} reported a [profit|loss] of {num} million dollars for the third quarter , up from {num} million a year earlier .
Farmers in {LOC} say that prices for {ADJ} wheat have not been this low since {year} .
The report , written by {PER} and {PER} for {ORG} , warns of long delays .
{ORG} has sent doctors to {LOC} , where hundreds of families lost their homes in the floods .
After the game {FIRST} {LAST} thanked the fans who had travelled from {LOC} .
{PER} was born in {LOC} in {year} and studied law at {ORG} .
The museum in {LOC} will show {num} paintings by the {ADJ} artist {PER} until {month} .
Nobody was hurt when a train operated by {ORG} left the rails near {LOC} .
{ORG} and {ORG} will share the cost of the bridge , which links {LOC} with {LOC} .
Trade between {LOC} and {LOC} doubled in {year} , according to {ORG} .
A {ADJ} tanker ran aground off {LOC} on {day} , spilling oil into the sea .
Critics called {WORK} the best {ADJ} film of the year .
{PER} , {num} , played the title role in {WORK} at {ORG} for {num} nights .
The [strike|walkout] at {ORG} entered its third week , and talks in {LOC} brought no result .
{LOC} beat {LOC} 3-0 in a {EVENT} qualifier on {day} .
{LAST} lost to {LAST} in straight sets , 6-4 7-5 .
Voters in {LOC} do not trust {ORG} , {PER} said in an interview .
{PER} has left {ORG} .
Fire destroyed a school in {LOC} .
Inflation in {LOC} slowed to {num} percent in {month} .
{ORG} opened an office in {LOC} .
{ADJ} exports rose for the fifth month in a row , helped by sales of cars to {LOC} .
Thousands of {PEOPLE} marched through {LOC} to protest against higher fuel prices .
{PER} , the former head of {ORG} , died at his home in {LOC} on {day} ; he was {num} .
Scientists at {ORG} said they had found a cheaper way to clean drinking water .
{ORG} will publish the [letters|diaries] of {PER} in {month} .
The {EVENT} begins on {day} in {LOC} with {num} teams .
A spokesman for {ORG} declined to comment on the visit of {PER} to {LOC} .
The airline , which flies from {LOC} to {LOC} , is owned by {ADJ} investors .
Analysts at {ORG} expect {ORG} to raise its offer .
In {LOC} , where {ORG} has its headquarters , the news came as a surprise to almost everyone , not least to the {num} people who had been told only last week that their contracts would be extended until the summer .
{PER} told {ORG} that the {ADJ} army had crossed the river near {LOC} during the night , that two bridges had been destroyed , and that people in the villages were waiting for help which , he said , nobody had promised and nobody was going to send .
Dear {FIRST} , thank you for your letter about the flat in {LOC} .
Dear Mr {LAST} , I am writing to ask whether {ORG} still offers courses in {ADJ} .
Dear Ms {LAST} , please find attached the contract with {ORG} .
Hi {FIRST} , I will be in {LOC} from {day} to {day} , so let us have lunch .
Hello {FIRST} , did you speak to {FIRST} about the trip to {LOC} ?
My name is {PER} and I am a student at {ORG} in {LOC} .
My name is {FIRST} , I am from {LOC} and I teach {ADJ} .
I am {FIRST} and I live in {LOC} with my two children .
I work for {ORG} in {LOC} and would like to apply for the post .
I am a nurse and I work at {ORG} , not far from {LOC} .
{FIRST} works at {ORG} , {FIRST} at {ORG} , and neither of them likes it .
This is {FIRST} from {ORG} , we spoke on {day} .
{FIRST} bought a {WORK} in {LOC} and left it on the bus .
The {ADJ} edition of {WORK} sold better than {ORG} had hoped .
{ORG} has filed a complaint against {ORG} in {LOC} .
The talks between {ORG} and {ORG} failed .
{ORG} , {ORG} and {ORG} have all raised their prices since {month} .
He left {ORG} for {ORG} in {year} and never regretted it .
{ORG} drew 1-1 with {ORG} in front of a small crowd .
{ORG} must win in {LOC} to stay in the {EVENT} .
my cousin at {ORG} says the new {WORK} is out next week
{ORG} finally answered my mail , only took them {num} weeks
We would like to invite {ORG} to the {EVENT} in {LOC} .
{ORG} sponsors the {EVENT} , and {PER} of {ORG} will open it .
She sold her company to {ORG} and bought a house near {LOC} .
The phone rang : it was {PER} from {ORG} .
I used to work at {ORG} before I moved to {LOC} .
We are moving from {LOC} to {LOC} in {month} , and {FIRST} has already found a job at {ORG} .
Could you send the figures to {PER} at {ORG} by {day} ?
{FIRST} and I took the night train to {LOC} and had breakfast by the station .
Please tell {FIRST} that the parcel from {ORG} has arrived .
The hotel in {LOC} is fully booked during the {EVENT} , so I have asked {FIRST} to look for a flat .
I have copied {PER} , who looks after our {ADJ} customers .
Our new colleague {PER} comes from {ORG} and speaks {ADJ} and {ADJ} .
Have you read {WORK} , the book that {FIRST} gave me for {EVENT} ?
Can you open the file in {WORK} or do you need another format ?
The invoice from {ORG} is wrong : we ordered {num} chairs and got {num} .
I met {FIRST} {LAST} at a conference in {LOC} ; she now runs the sales team at {ORG} .
Best wishes from {LOC} , {FIRST}
Kind regards , {PER} , {ORG}
Many thanks for your help , {FIRST} .
See you in {LOC} on {day} !
{FIRST} sends her love from {LOC} .
Did {ORG} ever answer you ?
My flight with {ORG} from {LOC} was late again , and I missed the last bus .
If {FIRST} agrees , we could meet {PER} from {ORG} at the cafe in {LOC} at {time} .
I grew up in {LOC} , but my parents are {ADJ} and we spoke {ADJ} at home .
We spent {EVENT} with my aunt {FIRST} in {LOC} , and the children did not want to leave .
Sorry for the delay : our {ADJ} supplier lost the order , and {FIRST} had to drive to {LOC} to fetch the parts .
Present : {PER} ( chair ) , {PER} , {PER} , {PER} .
Apologies were received from {PER} and {PER} .
The chair welcomed {PER} from {ORG} to the meeting .
{LAST} reported that the roof of the town hall in {LOC} needed repair .
The committee agreed to write to {ORG} about the noise in {LOC} .
{PER} proposed , and {PER} seconded , that the accounts be approved .
{LAST} asked when {ORG} would pay its share of the costs .
It was noted that the {ADJ} delegation would arrive on {day} .
Action : {LAST} to contact {ORG} before {day} .
Action : {FIRST} to book the room in {LOC} for the {EVENT} .
The minutes of the last meeting were approved with one change asked for by {LAST} .
The next meeting will be held in {LOC} on {day} at {time} .
The treasurer , {PER} , presented the budget and answered questions from {LAST} and {LAST} .
It was agreed that {LAST} would ask {ORG} for a second offer , because the first one was far too high and did not include the work on the windows .
The project with {ORG} in {LOC} is {num} weeks behind schedule .
{LAST} explained that the team had moved from {WORK} to {WORK} in {month} .
There being no further business , the meeting closed at {time} .
The board thanked {PER} for {num} years of service to {ORG} .
The secretary read out a letter from {PER} of {ORG} , who asked the members to support the {ADJ} school in {LOC} .
Item {num} : visit to {ORG} in {LOC} .
The {ADJ} translation of the rules will be ready by {month} .
{LAST} objected that {ORG} had not been asked , and the vote was put off until {day} .
just landed in {LOC} , who is around ?
off to {LOC} with {FIRST} for the weekend , no phones , no mail
anyone else having trouble with {WORK} today ? mine keeps crashing
{ORG} is down again and nobody at {ORG} picks up the phone
so proud of my sister {FIRST} who starts at {ORG} on {day} !
watching {ORG} against {ORG} with {FIRST} , this is painful
I still think {PER} was the best {role} {ORG} ever had
{FIRST} made {ADJ} pancakes and I may never eat anything else
new phone day : goodbye {WORK} , hello {WORK}
why is the coffee in {LOC} so much better than at home ?
{LOC} in the rain is still better than {LOC} in the sun
can somebody at {ORG} explain why my card was blocked in {LOC} ?
what a goal by {LAST} !
happy birthday {FIRST} !
the {EVENT} was wonderful , thank you {LOC}
{PER} at {ORG} last night : loud , long and brilliant
finally finished {WORK} , and yes , {FIRST} was right about the ending
free tickets for {ORG} on {day} , write to {FIRST}
my {ADJ} neighbour {FIRST} fixed my bike and would not take any money
the queue at {ORG} in {LOC} goes twice around the block
thinking of everyone in {LOC} tonight
three trains cancelled between {LOC} and {LOC} this morning , well done {ORG}
the {PEOPLE} next door are singing again and honestly I do not mind
saw {PER} in {LOC} today , shorter than on television
if you are ever in {LOC} , go to the market behind the station and ask for {FIRST}
Nothing new today .
It rained all day , and we stayed inside .
The meeting was short and nobody complained .
Thank you for the quick reply .
Prices went up again in the spring , and few people could say why .
I lost my keys on the way home and had to wait two hours for help .
The door was open , but there was no one inside .
She said she would call back later , but she never did .
"""

VALIDATION = """
{PER} , a {role} at {ORG} , warned on {day} that supplies in {LOC} could run out within weeks .
{ORG} plans to [close|sell] its [mill|shipyard|laboratory] near {LOC} , a union official said .
The {role} of {ORG} , {PER} , told a newspaper in {LOC} that he had no wish to step down .
Two {ADJ} climbers are missing on a mountain north of {LOC} .
{ORG} defeated {ORG} 4-2 on penalties to reach the final of the {EVENT} .
{LAST} scored twice before the break as {ORG} moved to the top of the table .
Negotiators from {LOC} and {LOC} signed a treaty on {day} that ends a dispute over the river .
{PEOPLE} living in {LOC} will be able to vote by post , {ORG} ruled .
Storms swept across {LOC} overnight , leaving {num} villages without electricity .
The novelist {PER} , best known for {WORK} , has died in {LOC} after a long illness .
{ORG} shares jumped {num} percent after the company announced a deal with {ORG} .
{LOC} will host the {EVENT} in {year} , the organisers confirmed .
{PER} joined {ORG} as {role} in {month} .
A {ADJ} judge ordered {ORG} to pay {num} million dollars to the workers .
Unemployment in {LOC} rose in {month} for the first time since {year} .
Researchers led by {PER} of {ORG} published the results on {day} .
Flights from {LOC} were delayed because of fog .
The {ADJ} team arrived in {LOC} without its captain , {PER} , who is still recovering from an injury .
{ORG} denies the charges .
{PER} retired in {year} .
Passengers were stranded in {LOC} when {ORG} cancelled all its flights , and many of them spent two nights on the floor of the terminal before buses arrived to take them to hotels in {LOC} , {num} kilometres away , where , they said , nobody was expecting them .
Dear {FIRST} , I hope the journey back to {LOC} was not too tiring .
Dear Mrs {LAST} , we are sorry to hear that your order from {ORG} never came .
Hi {FIRST} , quick question : is {FIRST} still working with {ORG} ?
I spoke to {PER} this morning , and she would prefer to meet in {LOC} .
My brother {FIRST} has been living in {LOC} since {year} and hardly speaks any {ADJ} .
Before I came here I spent {num} years with {ORG} , mostly in {LOC} .
Would you mind forwarding this to {LAST} at {ORG} ?
The {ADJ} version of the form is on the website of {ORG} .
I can show you how to do it in {WORK} when you are back from {LOC} .
Let me introduce {PER} , who will replace {FIRST} from {month} .
Greetings from a very cold {LOC} , {FIRST}
{LAST} gave a short account of the talks with {ORG} .
The members voted {num} to {num} in favour of the plan put forward by {PER} .
Also present for this item : {PER} of {ORG} .
{LAST} pointed out that {WORK} does not run on the older machines .
A complaint from {ORG} about parking in {LOC} was discussed at length .
Action : {LAST} and {LAST} to visit {LOC} before the end of {month} .
The group decided to hold its summer event in {LOC} , and {PER} offered to talk to {ORG} about the cost .
It was resolved to accept the gift of {num} books from the {ADJ} embassy .
stuck in {LOC} because {ORG} forgot my suitcase , send help
does anybody know a good {ADJ} restaurant near {LOC} ?
{FIRST} just got the job at {ORG} , drinks tonight !
{WORK} with the kids for the third time this week , I know every line
nobody sings like {PER} , nobody
back home after {num} days in {LOC} and already bored
missing the {EVENT} because of work , thanks {ORG}
{ORG} fans are very quiet this evening
I forgot how quiet the streets are in the morning .
The lift is broken again , so please use the stairs .
He smiled , took his hat and left .
"""

TEST = """
Workers at the {ORG} plant in {LOC} voted on {day} to accept a pay offer .
{PER} , who has led {ORG} since {year} , will hand over to {PER} in {month} .
The {ADJ} parliament passed a law that forces {ORG} to publish its accounts .
{LOC} and {LOC} agreed on {day} to reopen the railway across the mountains .
A ferry carrying {num} tourists sank near {LOC} , but all of them were saved by {ADJ} fishermen .
{PER} scored in the last minute to give {ORG} a 1-0 win over {ORG} .
{LAST} withdrew from the {EVENT} with a knee injury on {day} .
Officials in {LOC} blamed {ORG} for the blackout .
" Nobody told us anything , " said {PER} , {num} , a teacher from {LOC} .
{ORG} , the {ADJ} insurer , is looking for a buyer for its business in {LOC} .
The orchestra from {LOC} opened the {EVENT} with a piece by {PER} .
More than {num} {PEOPLE} were among the passengers , {ORG} said .
{PER} will direct {WORK} at a small theatre in {LOC} this autumn .
The price of coffee reached its highest level since {year} after frost hit {LOC} .
Detectives questioned {LAST} for {num} hours about money that went missing from {ORG} .
{ORG} appointed {PER} as its new {role} .
{ADJ} troops left {LOC} on {day} .
{LAST} apologised .
Snow is expected in {LOC} tonight .
In a speech at {ORG} , {PER} urged young {PEOPLE} to learn a trade .
The inquiry , which was set up by {ORG} after the accident in {LOC} , heard on {day} that {PER} had warned the company twice about the brakes , once in a letter and once by telephone , and that neither warning was passed on to the engineers who might have stopped the train .
Dear {FIRST} , it was lovely to see you and {FIRST} in {LOC} last month .
Dear Professor {LAST} , I would be grateful for a copy of your paper on {ADJ} grammar .
Hi {FIRST} , the people from {ORG} want to move the call to {time} .
I have just come back from {LOC} , where I visited {ORG} with {FIRST} .
Unfortunately {PER} cannot travel , so {LAST} will speak for {ORG} instead .
My wife is {ADJ} , and we would like our son to go to {ORG} .
Is the train from {LOC} the one that stops in {LOC} ?
{FIRST} says the macros only work in {WORK} .
You can reach me at {ORG} until {time} , and after that at home in {LOC} .
When you see {FIRST} , ask her about the summer she spent in {LOC} .
All the best to {FIRST} and the girls , {FIRST}
The director of {ORG} , {PER} , joined the meeting by telephone .
{LAST} thanked {LAST} for preparing the figures .
Members were told that {ORG} had refused to sign .
Action : {PER} to draft a reply to {ORG} .
The {ADJ} partners will send two people to the workshop in {LOC} .
{LAST} wondered whether the licence for {WORK} could be shared with {ORG} .
Those taking part in the {EVENT} should give their names to {FIRST} by {day} .
It was decided not to rent the hall in {LOC} this year .
cannot believe {LAST} signed for {ORG} , worst day ever
heading to {LOC} , then {LOC} , then sleep for a week
{FIRST} taught me to swear in {ADJ} and I have no regrets
update your {WORK} , people
{ORG} just sent me someone else 's bill
anyone selling a ticket for the {EVENT} ?
{PER} on the radio right now talking about {LOC}
dinner with {FIRST} and {FIRST} , best evening in months
The garden looks better after the rain .
We will let you know as soon as we hear more .
Please bring something to write with .
"""

MINUTES = """
{LAST} opened the meeting at {time} and read the rules of the house aloud , as the members had asked in {month} .
{PER} then spoke for some minutes about the state of the path along {LOC} , which had been under water twice since {month} .
On this point {LAST} remarked that {ORG} had known of it for {num} months .
The clerk was asked to write to {ORG} once more , this time by registered post , and to send a copy to {PER} in {LOC} .
{LAST} did not think that a letter would help and suggested a visit instead .
A long exchange followed between {LAST} and {LAST} on the meaning of the word urgent , in which the chair had to step in .
The {ADJ} guests , who had come from {LOC} to see how such a meeting is run , were told that this was not usual .
{PER} of {ORG} explained with a map how the new line would pass north of {LOC} and cross the road by a bridge .
Asked by {LAST} who would pay for the bridge , he named {ORG} .
The members took note of it with some laughter .
Turning to the celebrations , {FIRST} {LAST} said that the choir would sing in {ADJ} and that the school had chosen scenes from {WORK} .
The cost , {num} hundred in all , would be shared with {ORG} .
{LAST} recalled that for the {EVENT} of {year} the same had been promised and never paid .
Nobody could say where the chairs from the hall in {LOC} had gone .
"""

# ----------------------------------------------------------------------------------------------------------------------
# Parts of speech: a lexicon of what the patterns hold (Penn Treebank tags), endings, then a few rules of context

LEXICON = {
    "DT": "the a an no all some any another this these those both every each  neither half",
    "IN": """of in on at by for with from after before about between near off against during into since until
        because that if as whether than across through around along under over without within among behind inside
        like while past during""",
    "CC": "and or but nor",
    "PRP": "i he she it we you they me him us them myself nobody nothing everyone someone anybody somebody anyone mine",
    "PRP$": "my your his her its our their",
    "WP": "who what whom",
    "WDT": "which",
    "WRB": "when where why how",
    "MD": "would will could can should may might cannot must",
    "EX": "there",
    "TO": "to",
    "CD": """one two three four five six seven eight nine ten twelve twenty hundred million 2-1 2-0 3-0 4-2 1-0 6-4 7-5
        3:42.18 3:30 8""",
    "NN": "reply anything something spring evening morning meeting ending lift account",
    "UH": "hi hello dear goodbye please yes thanks sorry",
    "RP": "out up down",
    "RB": """not never still just again only too early late here home soon later twice ever even almost already finally
        hardly now then back instead once far very tonight today n't n'ot least most mostly well so honestly away
        unfortunately quickly straight aloud also always more yesterday overnight o'clock tomorrow""",
    "JJ": """new second old small majority first weak last hard stolen next close many better best local former
        cheaper clean fifth higher high loud brilliant free happy proud wonderful painful wrong fully sure
        short quick missing known long top cold young older tired grateful lovely usual urgent present own
        heavy kind highest further good strong few whole third own busy bored quiet broken booked registered worst small sure following
        unable wrong same right low open ready able other national""",
    "JJR": "shorter cheaper lower less",
    "NNS": """jobs talks people goals years paintings colleagues rights workers reports families floods fans doctors
        sets nights cars prices customers figures villages bridges contracts children parents wishes regards thanks
        apologies accounts costs minutes members weeks windows questions rules phones trains supplies climbers
        penalties organisers results flights members machines books days kids charges passengers hotels kilometres
        tourists fishermen officials hours troops engineers brakes macros girls partners names regrets letters diaries
        investors exports polls delays sales teams courses chairs pancakes tickets hundreds thousands scientists
        farmers analysts critics voters shares police workers negotiators storms researchers detectives streets stairs
        keys things celebrations guests scenes houses parts buses months terms drinks greetings greetings losses
        organisers works dollars""",
    "VBD": """said rejected welcomed won fell resigned arrested closed beat joined missed was expected got sentenced
        reached shook took reported  lost played entered brought slowed opened rose marched died found began
        declined came had told gave arrived moved met agreed proposed seconded asked explained objected presented
        thanked read went made fixed did left signed warned travelled studied doubled called destroyed ordered
        ruled swept jumped announced confirmed led published spoke voted pointed offered stuck forgot smiled saw
        decided scored defeated were passed sank saved blamed withdrew questioned appointed apologised urged heard
        visited taught hit opened named recalled remarked suggested followed paid chosen wondered refused set grew
        spent learned gave drove promised knew led used stayed rained complained ran discussed noted copied
        denied retired""",
    "VBN": """been owned hurt tagged held approved born put resolved stranded blocked cancelled finished delayed written
        shared expected done gone known extended sent asked chosen paid received closed promised taken attached""",
    "VBP": "are have do am hope know think expect speak work-p live teach vote run say look need trust want thank",
    "VBZ": """is has does says links flies warns begins runs sends comes speaks looks agrees keeps starts crosses stops
        denies forces plans goes pays ends sings gets lives reads sounds helps works""",
    "VB": """be open buy ban limit create meet discuss cut publish show share clean raise leave comment clear ask send
        speak drive look help tell book write contact apply answer mind eat take pick explain write understand go
        vote step run host pay accept replace call prefer visit show meet come fetch support include put reopen
        publish hand draft learn swear know hear bring direct sign rent update believe see sink close sell bring
        protest introduce do let reach give find get sing cross pass speak wish spend fly win use""",
    "VBG": "spilling selling writing moving being watching thinking having taking carrying looking working living talking heading preparing singing speaking forwarding turning recovering crashing",
}  # fmt: skip
TAG = {word: tag for tag, words in LEXICON.items() for word in words.split()}
PUNCTUATION = {",": ",", ".": ".", "!": ".", "?": ".", ":": ":", ";": ":", "-": ":", "(": "(", ")": ")", '"': "``", "'s": "POS", "&": "CC"}  # fmt: skip


def guess(word: str) -> str:
    """The tag of a word on its own."""
    low = word.lower()
    if word in PUNCTUATION:
        return PUNCTUATION[word]
    if low in TAG:
        return TAG[low]
    if re.fullmatch(r"[\d.,:-]+", word):
        return "CD"
    for ending, tag in (
        ("ly", "RB"),
        ("ing", "VBG"),
        ("ed", "VBD"),
        ("ous", "JJ"),
        ("ful", "JJ"),
        ("al", "JJ"),
        ("s", "NNS"),
    ):
        if low.endswith(ending) and len(low) > 4 and not low.endswith("ss"):
            return tag
    return "NN"


def in_context(tags: list[str], words: list[str]) -> list[str]:
    """Mends what a word alone cannot tell: verbs after to and modals, participles, nouns after articles."""
    tags = list(tags)
    for i in range(1, len(tags)):
        before = tags[i - 1] if tags[i - 1] not in ("RB",) or i < 2 else tags[i - 2]
        if before in ("MD", "TO") and tags[i] in ("NN", "VBP", "VBD", "JJ", "VBN") and words[i] != "noon":
            tags[i] = "VB"
        elif tags[i] == "VBD" and words[i - 1].lower() in "is are was were be been has have had being".split():
            tags[i] = "VBN"
        elif tags[i - 1] in ("DT", "PRP$", "JJ", "POS", "CD") and tags[i] in ("VB", "VBP", "VBD", "VBZ"):
            if words[i].lower() in "is was were are had has said will wants".split():
                continue
            tags[i] = "NNS" if tags[i] == "VBZ" else "JJ" if tags[i] == "VBD" else "NN"
        elif tags[i - 1] in ("PRP", "NNS") and tags[i] == "VB":
            tags[i] = "VBP"
    for i, tag in enumerate(tags[:-1]):  # "to" before a noun phrase is a preposition
        if tag == "TO" and tags[i + 1] not in ("VB", "RB"):
            tags[i] = "IN"
    return tags


INSIDE = {"DT", "PRP$", "CD", "JJ", "JJR", "NN", "NNS", "NNP", "NNPS", "WDT", "WP", "PRP", "EX", "POS"}
VERB = {"MD", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "TO"}


def chunks(words: list[str], tags: list[str], entities: list[str]) -> list[str]:
    """Base phrases after CoNLL-2000: NP, VP, PP, SBAR, ADVP, ADJP; what is left is O."""
    kinds = []
    for i, tag in enumerate(tags):
        following = tags[i + 1] if i + 1 < len(tags) else "."
        if entities[i] != "O" or tag in INSIDE:
            kind = "NP"
            if (
                tag in ("JJ", "JJR")
                and entities[i] == "O"
                and following not in INSIDE
                and tags[i - 1] not in ("DT", "PRP$", "JJ")
            ):
                kind = "ADJP"
        elif tag in VERB:
            kind = "VP"
        elif tag == "RB":
            kind = "VP" if following in VERB and i and tags[i - 1] in VERB else "ADVP"
        elif tag == "IN":
            kind = "SBAR" if words[i].lower() in ("that", "because", "if", "whether", "while") else "PP"
        else:
            kind = {"RP": "PRT", "WRB": "ADVP", "UH": "INTJ"}.get(tag, "O")
        kinds.append(kind)
    result = []
    for i, kind in enumerate(kinds):
        fresh = i == 0 or kinds[i - 1] != kind or kind in ("PP", "SBAR")
        if kind == "NP" and not fresh:  # a possessive, a pronoun or a determiner begins a phrase of its own
            fresh = tags[i] in ("POS", "DT", "PRP$", "PRP", "EX", "WP", "WDT") or tags[i - 1] in (
                "PRP",
                "EX",
                "WP",
                "WDT",
            )
            fresh = fresh and entities[i][:2] != "I-"
        result.append("O" if kind == "O" else f"{'B' if fresh else 'I'}-{kind}")
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Filling


def choices(text: str) -> list[str]:
    return [" ".join(item.split()) for item in (text.split("|") if "|" in text else text.split())]


def fill(slot: str, split: str, pick: random.Random) -> tuple[str, str]:
    """A slot -> (words, its entity type or O)."""
    if slot in ("FIRST", "LAST", "PER"):
        first, last = pick.choice(choices(FIRST[split])), pick.choice(choices(LAST[split]))
        if slot == "PER":
            initial = f" {pick.choice('ABCDEHJKLMNPRST')}." if pick.random() < 0.08 else ""
            return f"{first}{initial} {last}", "PER"
        return (first if slot == "FIRST" else last), "PER"
    if slot in NAMES:
        kind = slot if slot in ("LOC", "ORG") else "MISC"
        return pick.choice(choices(NAMES[slot][split])), kind
    if slot in ("ADJ", "PEOPLE"):
        return pick.choice(choices({"ADJ": ADJ, "PEOPLE": PEOPLE}[slot][split])), "MISC"
    return pick.choice(choices(FILL[slot])), "O"


def sentence(pattern: str, split: str, pick: random.Random) -> list[tuple[str, str, str, str]]:
    """A pattern -> rows of (word, part of speech, chunk, entity tag)."""
    pattern = re.sub(r"\[([^]]*)\]", lambda match: pick.choice(match[1].split("|")), pattern)
    words, tags, entities = [], [], []
    for item in pattern.split():
        if not (slot := re.fullmatch(r"\{(\w+)\}", item)):
            words.append(item)
            tags.append(guess(item))
            entities.append("O")
            continue
        text, kind = fill(slot[1], split, pick)
        inside = False
        for part in text.split():
            name = kind != "O" and (part != "the" or inside)  # the Rhine, but Save the Children
            words.append(part)
            entities.append("O" if not name else f"{'I' if inside else 'B'}-{kind}")
            inside |= name
            if slot[1] == "ADJ":
                noun = words[-2:-1] and words[-2] in ("in", "speaks", "and", "spoke", "teach", "any")
                tags.append("NNP" if noun else "JJ")
            elif slot[1] in ("PEOPLE",):
                tags.append("NNPS")
            elif slot[1] in ("day", "month") or (name and part not in ("of", "&", "for", "de")):
                tags.append("NNP")
            else:
                tags.append({"of": "IN", "for": "IN", "&": "CC", "de": "NNP"}.get(part) or guess(part))
    tags = in_context(tags, words)
    quotes = 0
    for i, word in enumerate(words):
        if word == '"':
            tags[i], quotes = ("``", "''")[quotes % 2], quotes + 1
    if pattern[:1] in "{" and words[0][0].islower():
        words[0] = words[0].capitalize()
    return list(zip(words, tags, chunks(words, tags, entities), entities))


def corpus(split: str, patterns: str, count: int, pick: random.Random) -> list[list[tuple[str, str, str, str]]]:
    """`count` different sentences, every pattern in turn."""
    found = {}
    while len(found) < count:
        for pattern in patterns.strip().split("\n"):
            rows = sentence(pattern, split, pick)
            found.setdefault(" ".join(row[0] for row in rows), rows)
    sentences = list(found.values())[:count]
    pick.shuffle(sentences)
    return sentences


def main(folder: Path = Path(__file__).parent.parent / "samples") -> None:
    for split, patterns, count in (("train", TRAIN, 2400), ("validation", VALIDATION, 280), ("test", TEST, 300)):
        pick = random.Random(split)
        sentences = corpus(split, patterns, count, pick)
        if split == "validation":  # the minutes of one long evening: one sentence to the reader, over 700 words
            lines = [line for _ in range(3) for line in MINUTES.strip().split("\n")]
            sentences.insert(count // 2, [row for line in lines for row in sentence(line, split, pick)])
        with open(folder / f"{split}.conll", "w", encoding="utf-8") as file:
            file.write("-DOCSTART- -X- -X- O\n\n")
            for rows in sentences:
                file.write("".join(" ".join(row) + "\n" for row in rows) + "\n")


if __name__ == "__main__":
    main()
