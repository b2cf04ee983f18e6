"""Words and sentence templates of the general text, in English and Korean, and of SQL over unrelated schemas."""

from __future__ import annotations

WEEKDAYS_KO = "월요일 화요일 수요일 목요일 금요일 토요일 일요일".split()
MONTHS_KO = [f"{n}월" for n in range(1, 13)]

RULES_EN: dict[str, list[str]] = {
    "who": ["{name}", "my {kin}", "the {job}", "an old {job}", "{name}'s {kin}", "a young {job}"],
    "name": (
        "Anna Ben Clara David Ella Frank Grace Hugo Irene Jack Kate Leo Maria Nina Oscar Paula Quinn Rosa Sam "
        "Tina Victor Wendy Yuri Hana Jun Mari Tom Alice Felix Ruth"
    ).split(),
    "kin": "mother father sister brother aunt uncle cousin grandmother grandfather neighbour friend teacher".split(),
    "job": (
        "baker doctor nurse farmer sailor painter singer driver gardener writer cook student soldier pilot tailor "
        "fisher carpenter dancer lawyer miner librarian mechanic clerk guide"
    ).split(),
    "animal": (
        "dog cat horse bird fish rabbit bear fox wolf duck goat sheep cow pig mouse frog bee owl deer lion tiger "
        "monkey turtle snake whale crab ant goose crow spider"
    ).split(),
    "food": (
        "bread rice soup apple pear cheese milk honey egg noodle potato carrot onion salt sugar butter pepper bean "
        "cake corn melon grape lemon pumpkin garlic cabbage mushroom peach cherry plum"
    ).split(),
    "thing": (
        "table chair window door book pen letter clock mirror knife spoon plate cup bottle basket rope ladder "
        "hammer bicycle boat train map ticket coin ring hat coat shirt glove umbrella blanket pillow candle radio "
        "camera guitar drum ball kite doll box key stone wheel bucket brush needle button"
    ).split(),
    "place": (
        "village harbour market school library station bridge garden forest river lake mountain island beach field "
        "farm castle church museum park kitchen cellar tower street square valley cave desert hill hospital"
    ).split(),
    "adj": (
        "small large old new red blue green white black yellow warm cold quiet loud heavy light soft hard bright dark "
        "long short wide narrow clean dirty empty full round flat strong weak sweet bitter rich poor gentle brave"
    ).split(),
    "weather": "sunny rainy windy cloudy snowy foggy stormy mild freezing humid".split(),
    "season": "spring summer autumn winter".split(),
    "time": [
        "in the morning",
        "at noon",
        "in the evening",
        "at night",
        "before dawn",
        "after dinner",
        "on {day}",
        "last {season}",
        "every {day}",
        "one day in {month}",
    ],
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": "January February March April May June July August September October November December".split(),
    "num": "two three four five six seven eight nine ten eleven twelve twenty thirty".split()
    + [str(n) for n in range(2, 100)],
    "did": (
        "found lost carried painted cleaned repaired sold bought hid dropped washed borrowed measured moved drew "
        "described forgot watched opened closed"
    ).split(),
    "went": "walked ran travelled hurried sailed returned drove rode climbed wandered".split(),
    "felt": "happy sad tired hungry proud afraid curious calm angry lonely surprised grateful".split(),
    "verb": "cut boil wash dry fold mix bake peel turn press rinse cover stir weigh heat cool".split(),
}
TEMPLATES = [
    "{time}, {who} {went} to the {place} with a {adj} {thing}.",
    "{who} {did} the {adj} {thing} and felt {felt}.",
    "The {animal} lives near the {place} and eats {food} and {food}.",
    "It was {weather} in the {place}, so {who} stayed {inside|at home|in bed} and ate {food}.",
    '{who} said: "{I like|I do not like|I need|Where is} the {adj} {thing}{.|!|?}"',
    "To make {food} soup, {verb} the {food}, then {verb} it for {num} minutes and add {food}.",
    "A {thing} is {an object|something} that {people use|one finds} in a {place}.",
    "There are {num} {animal}s and {num} {thing}s in the {place}.",
    "How many {thing}s does {who} have? {who} has {num}.",
    "In {season} the {place} is {adj} and {adj}, and the {animal} sleeps {time}.",
    "{who} wrote a {long|short|funny} letter to {who} about the {animal} and the {thing}.",
    "The road from the {place} to the {place} is {num} miles long and very {adj}.",
    "If the {thing} is {adj}, {verb} it; if it is {adj}, {verb} it twice.",
    "Things to bring: a {thing}, a {adj} {thing}, {food}, {food} and a {thing}.",
    "{day} comes after the night before, and in {month} the days are {long|short|warm|cold}.",
    "Once upon a time a {adj} {animal} met a {adj} {animal} at the {place}.",
    '"{Why|When|Where} did you {buy|lose|hide} the {thing}?" asked {who}. "{time}," said {who}.',
    "{who} has been a {job} for {num} years and still {loves|hates|enjoys} {food}.",
    "The {adj} {thing} costs more than the {adj} {thing}, but less than the {thing} of {who}.",
    "Number {num} is {larger|smaller} than it looks, said {who} in the {place}.",
    "First {verb} the {food}. Second, {verb} the {food}. Third, rest and look at the {place}.",
    "The {place} was built {num} years ago by a {adj} {job} who {did} a {thing}.",
    "Nobody knows why the {animal} {went} across the {place} {time}.",
]
RULES_KO: dict[str, list[str]] = {
    "who": ["{name} 씨", "우리 {kin}", "그 {job}", "나이 든 {job}", "젊은 {job}", "{name} 씨의 {kin}"],
    "name": (
        "가온 나래 다온 라희 마루 보람 새롬 아라 은별 정우 찬미 태양 하람 현서 지호 수빈 예린 동욱 경민 소율 "
        "재희 유진 승아 민재 채원"
    ).split(),
    "kin": "어머니 아버지 누나 형 이모 삼촌 사촌 할머니 할아버지 이웃 친구 선생님".split(),
    "job": (
        "제빵사 의사 간호사 농부 선원 화가 가수 운전사 정원사 작가 요리사 학생 군인 조종사 재단사 어부 목수 무용수 "
        "변호사 광부 사서 정비사 서기 안내인"
    ).split(),
    "animal": (
        "강아지 고양이 말 새 물고기 토끼 곰 여우 늑대 오리 염소 양 소 돼지 생쥐 개구리 꿀벌 부엉이 사슴 사자 "
        "호랑이 원숭이 거북이 뱀 고래 게 개미 거위 까마귀 거미"
    ).split(),
    "food": (
        "빵 밥 국 사과 배 치즈 우유 꿀 달걀 국수 감자 당근 양파 소금 설탕 버터 후추 콩 떡 옥수수 참외 포도 레몬 "
        "호박 마늘 배추 버섯 복숭아 앵두 자두"
    ).split(),
    "thing": (
        "책상 의자 창문 문 공책 연필 편지 시계 거울 칼 숟가락 접시 컵 병 바구니 밧줄 사다리 망치 자전거 배 기차 "
        "지도 표 동전 반지 모자 외투 셔츠 장갑 우산 이불 베개 양초 라디오 사진기 기타 북 공 연 인형 상자 열쇠 돌 "
        "바퀴 양동이 붓 바늘 단추"
    ).split(),
    "place": (
        "마을 항구 시장 학교 도서관 역 다리 정원 숲 강 호수 산 섬 바닷가 들판 농장 성 교회 박물관 공원 부엌 지하실 "
        "탑 거리 광장 골짜기 동굴 사막 언덕 병원"
    ).split(),
    "adj": (
        "작은 큰 오래된 새로운 빨간 파란 초록색 하얀 까만 노란 따뜻한 차가운 조용한 시끄러운 무거운 가벼운 부드러운 "
        "단단한 밝은 어두운 긴 짧은 넓은 좁은 깨끗한 더러운 빈 가득한 둥근 납작한 튼튼한 약한 달콤한 쓴"
    ).split(),
    "weather": [
        "맑았다",
        "비가 왔다",
        "바람이 불었다",
        "흐렸다",
        "눈이 왔다",
        "안개가 꼈다",
        "추웠다",
        "더웠다",
    ],
    "season": "봄 여름 가을 겨울".split(),
    "time": [
        "아침에",
        "점심때",
        "저녁에",
        "밤에",
        "새벽에",
        "저녁을 먹고",
        "{day}에",
        "지난 {season}에",
        "{day}마다",
        "{month}의 어느 날",
    ],
    "day": WEEKDAYS_KO,
    "month": MONTHS_KO,
    "num": "두 세 네 다섯 여섯 일곱 여덟 아홉 열 스무 서른".split() + [str(n) for n in range(2, 100)],
    "did": (
        "찾았다 잃어버렸다 날랐다 칠했다 닦았다 고쳤다 팔았다 샀다 "
        "숨겼다 떨어뜨렸다 씻었다 빌렸다 옮겼다 그렸다 잊었다 열었다"
    ).split(),
    "went": ["걸어갔다", "달려갔다", "떠났다", "서둘러 갔다", "돌아왔다", "올라갔다", "놀러 갔다"],
    "felt": (
        "기뻤다 슬펐다 피곤했다 배고팠다 뿌듯했다 무서웠다 "
        "궁금했다 차분했다 화났다 외로웠다 놀랐다 고마웠다"
    ).split(),
    "verb": "자르고 삶고 씻고 말리고 접고 섞고 굽고 벗기고 뒤집고 누르고 헹구고 덮고 젓고 데우고 식히고".split(),
}
KOREAN_TEMPLATES = [
    "{time} {who}[은/는] {adj} {thing}[을/를] 들고 {place}[으로/로] {went}.",
    "{who}[은/는] {adj} {thing}[을/를] {did}. 그래서 {felt}.",
    "{animal}[은/는] {place} 근처에 살고 {food}[과/와] {food}[을/를] 먹는다.",
    "{place}에는 {weather}. 그래서 {who}[은/는] {집|방|안}에서 {food}[을/를] 먹었다.",
    '{who}[이/가] 말했다. "{adj} {thing}[이/가] {좋아|싫어|필요해|어디 있지}{.|!|?}"',
    "{food} 국을 끓이려면 {food}[을/를] {verb} {num} 분 동안 {verb} {food}[을/를] 넣는다.",
    "{thing}[은/는] {place}에서 쓰는 물건이다.",
    "{place}에는 {animal} {num} 마리와 {thing} {num} 개가 있다.",
    "{who}[은/는] {thing}[이/가] 몇 개 있을까? 모두 {num} 개다.",
    "{season}에는 {place}[이/가] {adj} 빛을 띠고 {animal}[은/는] {time} 잔다.",
    "{who}[은/는] {who}에게 {animal}[과/와] {thing} 이야기를 담아 편지를 썼다.",
    "{place}에서 {place}까지는 {num} 리이고 길이 {험하다|곧다|예쁘다|멀다}.",
    "{thing}[이/가] {adj} 것이면 {verb}, 아니면 두 번 {verb} 둔다.",
    "챙길 것은 {thing}, {adj} {thing}, {food}, {food}, {thing}이다.",
    "{month}에는 날이 {길다|짧다|덥다|춥다}. {day}에는 {who}[이/가] 온다.",
    "옛날에 {adj} {animal}[이/가] {place}에서 {adj} {animal}[을/를] 만났다.",
    '"{thing}[은/는] {왜|언제|어디서} {샀어|잃어버렸어}?" {who}[이/가] 물었다. "{time}." {who}[이/가] 답했다.',
    "{who}[은/는] {num} 해 동안 {job}[으로/로] 일했고 아직도 {food}[을/를] 좋아한다.",
    "{adj} {thing}[은/는] {adj} {thing}보다 비싸지만 {who}의 {thing}보다는 싸다.",
    "먼저 {food}[을/를] {verb}, 다음에 {food}[을/를] {verb}, 마지막으로 쉰다.",
    "{place}[은/는] {num} 해 전에 {adj} {thing}[을/를] 만든 {job}[이/가] 지었다.",
    "{animal}[이/가] {time} 왜 {place}[으로/로] 갔는지 아무도 모른다.",
]

ANTONYMS = [
    pair.split("/")
    for pair in (
        "hot/icy up/down big/small fast/slow early/late open/closed young/old happy/sad rich/poor hard/soft day/night "
        "first/last left/right long/short high/low near/far wet/dry strong/weak full/empty clean/dirty "
        "buy/sell win/lose "
        "크다/작다 높다/낮다 빠르다/느리다 길다/짧다 넓다/좁다 많다/적다 무겁다/가볍다 밝다/어둡다 좋다/싫다 열다/닫다 "
        "가다/오다 앉다/서다 덥다/춥다 쉽다/어렵다"
    ).split()
]
TRANSLATIONS = [
    tuple(pair.split("/"))
    for pair in (
        "water/물 fire/불 tree/나무 flower/꽃 house/집 road/길 hand/손 foot/발 eye/눈 nose/코 mouth/입 "
        "head/머리 bread/빵 "
        "rice/밥 salt/소금 milk/우유 apple/사과 dog/강아지 cat/고양이 bird/새 fish/물고기 bear/곰 rabbit/토끼 "
        "sea/바다 river/강 "
        "mountain/산 star/별 moon/달 rain/비 wind/바람 book/책 letter/편지 clock/시계 door/문 school/학교"
    ).split()
]

SQL_SCHEMAS: list[dict[str, list[str]]] = [
    {
        "t": ["members", "loans", "titles"],
        "u": ["branches", "authors"],
        "key": ["member_id", "branch_id", "author_id"],
        "c": ["writer", "genre", "shelf", "language"],
        "d": ["borrowed", "due_back", "printed"],
        "x": ["pages", "copies", "age", "fine"],
        "v": ["poetry", "history", "novel", "comics", "maps"],
        "en": ["titles", "loans", "readers"],
        "ko": ["도서", "대출", "독자"],
    },
    {
        "t": ["pupils", "classes", "exams"],
        "u": ["teachers", "rooms"],
        "key": ["pupil_id", "class_id", "room_id"],
        "c": ["subject", "surname", "grade", "club"],
        "d": ["enrolled", "held_on", "born"],
        "x": ["score", "hours", "seats", "absent"],
        "v": ["music", "math", "art", "science", "chess"],
        "en": ["pupils", "exams", "classes"],
        "ko": ["학생", "시험", "수업"],
    },
    {
        "t": ["animals", "keepers", "meals"],
        "u": ["cages", "species"],
        "key": ["animal_id", "cage_id", "keeper_id"],
        "c": ["diet", "habitat", "colour", "zone"],
        "d": ["born", "fed", "arrived"],
        "x": ["weight", "height", "visitors", "feed"],
        "v": ["lion", "otter", "eagle", "savanna", "night"],
        "en": ["animals", "meals", "cages"],
        "ko": ["동물", "먹이", "우리"],
    },
]
for _rules in SQL_SCHEMAS:
    _rules |= {
        "n": [str(n) for n in range(1, 100)],
        "y": ["2011", "2015", "2019", "2021"],
        "m": [f"{n:02d}" for n in range(1, 13)],
        "agg": ["COUNT(*)", "SUM({x})", "AVG({x})", "MAX({x})", "MIN({x})"],
        "w": [
            "{c} = '{v}'",
            "{x} > {n}",
            "{x} < {n}",
            "{x} >= {n}",
            "{c} <> '{v}'",
            "{d} LIKE '{y}-{m}%'",
            "{d} >= '{y}-{m}-01'",
            "{d} IS NULL",
            "{d} > {d}",
            "{key} IN (SELECT {key} FROM {u})",
            "{key} NOT IN (SELECT {key} FROM {u})",
        ],
    }
SQL_TEMPLATES = [
    "SELECT {c} FROM {t} WHERE {w}",
    "SELECT {c} FROM {t} WHERE {w} AND {w}",
    "SELECT {agg} FROM {t} WHERE {w}",
    "SELECT {group}, {agg} FROM {t} WHERE {w} GROUP BY {group}",
    "SELECT {agg} FROM {t} JOIN {u} USING ({key}) WHERE {w}",
    "SELECT {c} FROM {t} JOIN {u} USING ({key}) WHERE {w} AND {w}",
    "SELECT {group} FROM {t} ORDER BY {x} DESC, {group} LIMIT {n}",
    "SELECT {group} FROM {t} WHERE {w} ORDER BY {x}, {group} LIMIT {n}",
    "SELECT {group} FROM {t} GROUP BY {group} HAVING COUNT(*) >= {n}",
    "SELECT COUNT(DISTINCT {key}) FROM {t} WHERE {w}",
    "SELECT {group}, ROUND(AVG({measure}), 1) FROM {t} GROUP BY {group}",
]
SQL_COMMENTS = {
    "en": [
        "{en} with {measure} above {n}",
        "list of {en} by {group}",
        "count the {en}",
        "{en}, newest first",
        "which {group} has most {en}",
        "{en} of {y}",
        "average {measure} for each {group}",
    ],
    "ko": [
        "{ko} 목록",
        "{ko} 수 세기",
        "{ko} 중 {measure} 값이 {n} 넘는 것",
        "{y}년 {ko}",
        "{group}별 {ko} 평균",
        "{ko} 순서대로 보기",
    ],
}
