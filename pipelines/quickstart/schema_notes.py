"""What the shop's documents say of its schema and of its own words."""

from __future__ import annotations

from typing import NamedTuple

from bloomery.pipelines.quickstart import shop


class Term(NamedTuple):
    """One word of the business glossary: its meaning in both languages and where its condition applies."""

    en: str
    ko: str
    table: str
    meaning_en: str
    meaning_ko: str


# The names match the surfaces of families.SLOTS["order_term"] …; the conditions are read from there.
TERMS = (
    Term(
        "late orders",
        "지연 주문",
        "orders",
        "orders that were shipped after their due date",
        "납기일이 지난 뒤에 발송된 주문",
    ),
    Term(
        "overdue orders",
        "연체 주문",
        "orders",
        f"orders not shipped yet although their due date lies before today, {shop.TODAY}",
        f"납기일이 오늘({shop.TODAY})보다 앞인데 아직 발송되지 않은 주문",
    ),
    Term(
        "returned orders",
        "반품 주문",
        "orders",
        "orders with at least one line in the returns table",
        "returns 표에 한 줄이라도 있는 주문",
    ),
    Term(
        "bulk orders",
        "대량 주문",
        "orders",
        "orders in which some product was bought five times or more",
        "어떤 상품을 다섯 개 이상 산 주문",
    ),
    Term(
        "loyal customers",
        "단골 고객",
        "customers",
        "customers who placed five orders or more",
        "주문을 다섯 건 이상 한 고객",
    ),
    Term(
        "big spenders",
        "큰손 고객",
        "customers",
        "customers whose orders add up to 800 dollars or more",
        "주문 금액을 모두 더하면 800달러 이상인 고객",
    ),
    Term(
        "new customers",
        "신규 고객",
        "customers",
        f"customers who joined in the last two months, seen from {shop.TODAY}",
        f"{shop.TODAY} 기준으로 최근 두 달 안에 가입한 고객",
    ),
    Term(
        "dormant customers",
        "휴면 고객",
        "customers",
        "customers without an order since the first of July",
        "7월 1일부터 주문이 없는 고객",
    ),
    Term(
        "slow movers",
        "부진 상품",
        "products",
        "products with 80 pieces or more in stock",
        "재고가 80개 이상 쌓인 상품",
    ),
    Term(
        "scarce products",
        "품귀 상품",
        "products",
        "products with fewer than ten pieces in stock",
        "재고가 열 개도 남지 않은 상품",
    ),
    Term(
        "premium products",
        "고급 상품",
        "products",
        "products that cost 80 dollars or more",
        "가격이 80달러 이상인 상품",
    ),
)

# table, column, meaning in English, meaning in Korean. Gift cards are left out: their table is newer than its notes.
COLUMNS = (
    ("customers", "name", "the full name of the customer", "고객의 이름"),
    (
        "customers",
        "city",
        "the city where the customer lives, in English letters such as 'Seoul'",
        "고객이 사는 도시로 'Seoul'처럼 영어로 적는다",
    ),
    (
        "customers",
        "tier",
        "the membership tier: 'gold' (골드), 'silver' (실버) or 'bronze' (브론즈)",
        "회원 등급으로 골드는 'gold', 실버는 'silver', 브론즈는 'bronze'",
    ),
    ("customers", "joined", "the day the customer joined, as YYYY-MM-DD", "고객이 가입한 날"),
    ("suppliers", "supplier", "the name of the supplier", "공급업체의 이름"),
    ("suppliers", "country", "the country of the supplier, in English", "공급업체가 있는 나라"),
    ("products", "product", "the name of the product", "상품의 이름"),
    (
        "products",
        "category",
        "the category, in English such as 'tea' or 'lamps'",
        "상품의 분류로 차는 'tea', 조명은 'lamps'처럼 영어로 적는다",
    ),
    ("products", "price", "the price in dollars, a whole number", "달러로 적은 가격"),
    ("products", "stock", "the number of pieces in stock", "창고에 남은 개수"),
    ("products", "supplier_id", "the supplier of the product", "상품을 대는 공급업체"),
    ("orders", "customer_id", "the customer who placed the order", "주문한 고객"),
    (
        "orders",
        "ordered",
        "the day the order was placed; a month is matched with LIKE '2024-03%'",
        "주문한 날이며 3월은 LIKE '2024-03%'로 찾는다",
    ),
    ("orders", "due", "the day by which the order must be shipped", "늦어도 발송해야 하는 날"),
    (
        "orders",
        "shipped",
        "the day the order was shipped, NULL if it was not",
        "발송한 날이며 아직이면 NULL이다",
    ),
    (
        "orders",
        "status",
        "'pending' (대기), 'shipped' (발송), 'delivered' (배송 완료) or 'cancelled' (취소)",
        "상태로 대기는 'pending', 발송은 'shipped', 배송 완료는 'delivered', 취소는 'cancelled'",
    ),
    ("orders", "total", "the value of the order in dollars", "달러로 적은 주문 금액"),
    ("items", "order_id", "the order that the line belongs to", "그 줄이 속한 주문"),
    ("items", "product_id", "the product that was bought", "팔린 상품"),
    ("items", "qty", "the number of pieces bought", "산 개수"),
    ("payments", "order_id", "the order that was paid", "돈을 낸 주문"),
    (
        "payments",
        "method",
        "'card' (카드), 'cash' (현금), 'transfer' (계좌이체) or 'points' (포인트)",
        "수단으로 카드는 'card', 현금은 'cash', 계좌이체는 'transfer', 포인트는 'points'",
    ),
    ("payments", "paid", "the day of the payment", "돈을 낸 날"),
    ("returns", "order_id", "the order that came back", "돌아온 주문"),
    ("returns", "product_id", "the product that came back", "돌아온 상품"),
    (
        "returns",
        "reason",
        "'broken' (파손), 'unwanted' (변심), 'wrong' (오배송) or 'defect' (불량)",
        "사유로 파손은 'broken', 변심은 'unwanted', 오배송은 'wrong', 불량은 'defect'",
    ),
    ("returns", "returned", "the day of the return", "반품한 날"),
)

COLUMN_NOTES_EN = (
    "The column {column} of the table {table} holds {meaning}.",
    "In {table}, {column} is {meaning}.",
    "Look at {table}.{column} for {meaning}.",
)
COLUMN_NOTES_KO = (
    "{table} 표의 {column} 열: {meaning}.",
    "{table}에서 {column}에는 다음이 들어 있다: {meaning}.",
    "{table}.{column}의 뜻: {meaning}.",
)
TERM_NOTES_EN = (
    "We say {term} for {meaning}.",
    "In reports {term} means {meaning}.",
    "By {term} the shop understands {meaning}.",
    "The Korean word for {term} is {other}.",
)
TERM_NOTES_KO = (
    "{term}[이란/란] {meaning}[을/를] 말한다.",
    "보고서에서 {term}[은/는] {meaning}[을/를] 뜻한다.",
    "우리 가게는 {meaning}[을/를] {term}[이라고/라고] 부른다.",
    "{term}[은/는] 영어로 {other}라고 쓴다.",
)
