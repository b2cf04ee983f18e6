"""The shop: one schema, three databases with different contents.

A wrong query often gives the right rows on one database by luck; it seldom does on three.
Every date lies in 2024 (customers may have joined in 2023), and `TODAY` is the shop's fixed present.
"""

from __future__ import annotations

import random
import sqlite3
from datetime import date, timedelta
from pathlib import Path

TODAY = "2024-12-31"
NUM_DATABASES = 3
NUM_CUSTOMERS = 100
NUM_ORDERS = 380
NUM_SUPPLIERS = 18
PRODUCTS_PER_CATEGORY = 9
NUM_GIFT_CARDS = 90

SCHEMA = """
CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name TEXT, city TEXT, tier TEXT, joined TEXT);
CREATE TABLE suppliers (supplier_id INTEGER PRIMARY KEY, supplier TEXT, country TEXT);
CREATE TABLE products (product_id INTEGER PRIMARY KEY, product TEXT, category TEXT, price INTEGER, stock INTEGER,
    supplier_id INTEGER REFERENCES suppliers);
CREATE TABLE orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers, ordered TEXT,
    due TEXT, shipped TEXT, status TEXT, total INTEGER);
CREATE TABLE items (order_id INTEGER REFERENCES orders, product_id INTEGER REFERENCES products, qty INTEGER);
CREATE TABLE payments (payment_id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders, method TEXT, paid TEXT);
CREATE TABLE returns (order_id INTEGER REFERENCES orders, product_id INTEGER REFERENCES products, reason TEXT,
    returned TEXT);
CREATE TABLE gift_cards (card_id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers, amount INTEGER,
    bought TEXT, state TEXT);
"""

# English name = value stored in the database; Korean name = how a Korean speaker asks for it.
CITIES = {
    "Seoul": "서울",
    "Busan": "부산",
    "Incheon": "인천",
    "Daegu": "대구",
    "Daejeon": "대전",
    "Gwangju": "광주",
    "Ulsan": "울산",
    "Suwon": "수원",
    "Jeju": "제주",
    "Jeonju": "전주",
}
TIERS = {"gold": "골드", "silver": "실버", "bronze": "브론즈"}
CATEGORIES = {
    "tea": "차",
    "coffee": "커피",
    "books": "책",
    "toys": "장난감",
    "lamps": "조명",
    "bags": "가방",
    "shoes": "신발",
    "plants": "화분",
}
COUNTRIES = {
    "Korea": "한국",
    "Japan": "일본",
    "China": "중국",
    "Vietnam": "베트남",
    "Italy": "이탈리아",
    "France": "프랑스",
}
STATUSES = {"pending": "대기", "shipped": "발송", "delivered": "배송 완료", "cancelled": "취소"}
METHODS = {"card": "카드", "cash": "현금", "transfer": "계좌이체", "points": "포인트"}
REASONS = {"broken": "파손", "unwanted": "변심", "wrong": "오배송", "defect": "불량"}
CARD_STATES = {"unused": "미사용", "used": "사용 완료", "expired": "만료"}

_GIVEN = (
    "Minsu Jiwoo Haneul Seojun Yuna Dohyun Sora Eunji Taeho Mina Junho Arin Woojin Hyeri Siwoo Nari Jaemin "
    "Bora Kyung Sumin Emma Liam Noah Olivia Lucas Mia Ethan Ava Henry Zoe"
).split()
_FAMILY = (
    "Kim Lee Park Choi Jung Kang Cho Yoon Jang Lim Han Oh Seo Shin Kwon Brown Smith Moore Clark Young".split()
)
_PRODUCT_WORDS = (
    "Amber Birch Cedar Dawn Ember Fern Grove Harbor Iris Juniper Koala Lotus Maple Nori Olive Pine "
    "Quartz River Stone Tide Umber Violet Willow Zephyr"
).split()
_PRODUCT_NOUNS = {
    "tea": "Tea",
    "coffee": "Coffee",
    "books": "Book",
    "toys": "Toy",
    "lamps": "Lamp",
    "bags": "Bag",
    "shoes": "Shoes",
    "plants": "Pot",
}
_SUPPLIER_NOUNS = "Trading Works Goods Supply House Partners".split()


def write_databases(folder: Path, seed: int) -> list[Path]:
    """Write `shop_1.sqlite` … under `folder` and return their paths; the contents depend on `seed` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"shop_{number}.sqlite" for number in range(1, NUM_DATABASES + 1)]
    for path in paths:
        rng = random.Random(f"{path.stem}/{seed}")
        connection = sqlite3.connect(path)
        with connection:
            connection.executescript(SCHEMA)
            for table, rows in _contents(rng).items():
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.close()
    return paths


def run_sql(path: Path, sql: str) -> list[tuple]:
    """Return the rows of `sql` on the database at `path`, opened read-only. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def _contents(rng: random.Random) -> dict[str, list[tuple]]:
    customers = _customers(rng)
    suppliers = _suppliers(rng)
    products = _products(rng, [row[0] for row in suppliers])
    orders, items = _orders(rng, customers, products)
    return {
        "customers": customers,
        "suppliers": suppliers,
        "products": products,
        "orders": orders,
        "items": items,
        "payments": _payments(rng, orders),
        "returns": _returns(rng, orders, items),
        "gift_cards": _gift_cards(rng, customers),
    }


def _day(rng: random.Random, first: date, last: date) -> date:
    return first + timedelta(days=rng.randrange((last - first).days + 1))


def _skewed(rng: random.Random, values: dict[str, str]) -> list[str]:
    """Each value at least once, then more of some: no two databases share their proportions."""
    return list(values) + [value for value in values for _ in range(rng.randrange(3))]


def _customers(rng: random.Random) -> list[tuple]:
    names = rng.sample([f"{given} {family}" for given in _GIVEN for family in _FAMILY], NUM_CUSTOMERS)
    cities, tiers = _skewed(rng, CITIES), _skewed(rng, TIERS)
    rows = []
    for number, name in enumerate(names, 1):
        first, last = rng.choice(
            [(date(2023, 1, 1), date(2023, 12, 31))] * 5
            + [(date(2024, 1, 1), date(2024, 10, 31))] * 3
            + [(date(2024, 11, 1), date(2024, 12, 20))] * 2
        )
        rows.append((number, name, rng.choice(cities), rng.choice(tiers), _day(rng, first, last).isoformat()))
    return rows


def _suppliers(rng: random.Random) -> list[tuple]:
    names = rng.sample(
        [f"{word} {noun}" for word in _PRODUCT_WORDS for noun in _SUPPLIER_NOUNS], NUM_SUPPLIERS
    )
    countries = list(COUNTRIES) * 2
    countries += rng.choices(list(COUNTRIES), k=NUM_SUPPLIERS - len(countries))
    return [
        (number, name, country)
        for number, (name, country) in enumerate(zip(names, countries, strict=True), 1)
    ]


def _products(rng: random.Random, supplier_ids: list[int]) -> list[tuple]:
    rows: list[tuple] = []
    for category, noun in _PRODUCT_NOUNS.items():
        scale = rng.choice([40, 70, 100])
        for word in rng.sample(_PRODUCT_WORDS, PRODUCTS_PER_CATEGORY + rng.randrange(-1, 2)):
            price = 4 + rng.randrange(scale) + rng.choice([0, 0, 30])
            stock = rng.choice([rng.randrange(0, 10), rng.randrange(10, 80), rng.randrange(80, 130)])
            rows.append((len(rows) + 1, f"{word} {noun}", category, price, stock, rng.choice(supplier_ids)))
    return rows


def _orders(
    rng: random.Random, customers: list[tuple], products: list[tuple]
) -> tuple[list[tuple], list[tuple]]:
    buyers = [row for row in customers if rng.random() < 0.75]
    regulars = rng.sample(buyers, len(buyers) // 3)
    sold = [row for row in products if rng.random() < 0.72]
    orders, items = [], []
    for order_id in range(1, NUM_ORDERS + 1):
        buyer = rng.choice(regulars if rng.random() < 0.5 else buyers)
        ordered = _day(rng, max(date(2024, 1, 1), date.fromisoformat(buyer[4])), date(2024, 12, 28))
        due = ordered + timedelta(days=rng.randrange(2, 8))
        status = rng.choice(["pending", "shipped", "delivered", "delivered", "delivered", "cancelled"])
        shipped = (
            ordered + timedelta(days=rng.randrange(0, 11)) if status in ("shipped", "delivered") else None
        )
        lines = [
            (product, rng.choice([1, 1, 1, 2, 2, 3, 4, 5, 6]))
            for product in rng.sample(sold, rng.choice([1, 1, 2, 3]))
        ]
        items += [(order_id, product[0], qty) for product, qty in lines]
        orders.append(
            (
                order_id,
                buyer[0],
                ordered.isoformat(),
                due.isoformat(),
                shipped and shipped.isoformat(),
                status,
                sum(product[3] * qty for product, qty in lines),
            )
        )
    return orders, items


def _payments(rng: random.Random, orders: list[tuple]) -> list[tuple]:
    methods = _skewed(rng, METHODS)
    paid = [row for row in orders if row[5] != "cancelled" and rng.random() < 0.92]
    return [
        (
            number,
            row[0],
            rng.choice(methods),
            (date.fromisoformat(row[2]) + timedelta(days=rng.randrange(3))).isoformat(),
        )
        for number, row in enumerate(paid, 1)
    ]


def _returns(rng: random.Random, orders: list[tuple], items: list[tuple]) -> list[tuple]:
    delivered = {row[0]: date.fromisoformat(row[4]) for row in orders if row[5] == "delivered"}
    reasons = _skewed(rng, REASONS)
    last = date.fromisoformat(TODAY)
    return [
        (
            order_id,
            product_id,
            rng.choice(reasons),
            min(last, delivered[order_id] + timedelta(days=rng.randrange(2, 20))).isoformat(),
        )
        for order_id, product_id, _ in items
        if order_id in delivered and rng.random() < 0.35
    ]


def _gift_cards(rng: random.Random, customers: list[tuple]) -> list[tuple]:
    states = _skewed(rng, CARD_STATES)
    return [
        (
            number,
            rng.choice(customers)[0],
            rng.choice([10, 20, 30, 50, 100]),
            _day(rng, date(2024, 1, 1), date(2024, 12, 30)).isoformat(),
            rng.choice(states),
        )
        for number in range(1, NUM_GIFT_CARDS + 1)
    ]
