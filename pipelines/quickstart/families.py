"""What can be asked of the shop: slots, question families, and the sentence frames that ask them.

A family is one SQL template and the noun phrases that name what it returns. A frame turns a noun phrase into a
question or an order. Slots are written `{city}`; Korean particles that depend on the word before, `[은/는]`.
"""

from __future__ import annotations

from typing import NamedTuple

from bloomery.pipelines.quickstart import shop

LANGUAGES = ("en", "ko")


class Value(NamedTuple):
    """One value of a slot: how it is said in each language, and how it is written in SQL."""

    en: str
    ko: str
    sql: str


class Family(NamedTuple):
    """One kind of question. `kind` picks the frames, `unit` is the Korean counter for kind "count".

    `en` and `ko` are the noun phrases of questions; `title_en` and `title_ko` word the same thing differently
    and appear only in documents.
    """

    name: str
    kind: str
    sql: str
    en: tuple[str, ...]
    ko: tuple[str, ...]
    title_en: str = ""
    title_ko: str = ""
    unit: str = "개"


def _stored(values: dict[str, str]) -> list[Value]:
    return [Value(en, ko, en) for en, ko in values.items()]


def _numbers(*numbers: int) -> list[Value]:
    return [Value(str(number), str(number), str(number)) for number in numbers]


_MONTHS = ("January February March April May June July August September October November December").split()

SLOTS: dict[str, list[Value]] = {
    "city": _stored(shop.CITIES),
    "tier": _stored(shop.TIERS),
    "category": _stored(shop.CATEGORIES),
    "country": _stored(shop.COUNTRIES),
    "status": _stored(shop.STATUSES),
    "method": _stored(shop.METHODS),
    "reason": _stored(shop.REASONS),
    "state": _stored(shop.CARD_STATES),
    "month": [Value(name, f"{i}월", f"2024-{i:02d}") for i, name in enumerate(_MONTHS, 1)],
    "price": _numbers(15, 20, 25, 30, 40, 50, 60, 70),
    "total": _numbers(50, 80, 100, 150, 200, 250, 300),
    "k": _numbers(2, 3, 4, 5, 6, 7, 8),
    "least": _numbers(2, 3, 4, 5, 6),
    "cards": _numbers(1, 2, 3),
    "amount": _numbers(0, 1, 5, 9, 12, 45, 99),
    "table": [
        Value("customers", "고객", "customers"),
        Value("suppliers", "공급업체", "suppliers"),
        Value("products", "상품", "products"),
        Value("orders", "주문", "orders"),
        Value("items", "주문 품목", "items"),
        Value("payments", "결제", "payments"),
        Value("returns", "반품", "returns"),
    ],
    "order_term": [
        Value("late orders", "지연 주문", "shipped > due"),
        Value("overdue orders", "연체 주문", f"shipped IS NULL AND due < '{shop.TODAY}'"),
        Value("returned orders", "반품 주문", "order_id IN (SELECT order_id FROM returns)"),
        Value("bulk orders", "대량 주문", "order_id IN (SELECT order_id FROM items WHERE qty >= 5)"),
    ],
    "customer_term": [
        Value("loyal customers", "단골 고객",
              "customer_id IN (SELECT customer_id FROM orders GROUP BY customer_id HAVING COUNT(*) >= 5)"),
        Value("big spenders", "큰손 고객",
              "customer_id IN (SELECT customer_id FROM orders GROUP BY customer_id HAVING SUM(total) >= 800)"),
        Value("new customers", "신규 고객", "joined >= '2024-11-01'"),
        Value("dormant customers", "휴면 고객",
              "customer_id NOT IN (SELECT customer_id FROM orders WHERE ordered >= '2024-07-01')"),
    ],
    "product_term": [
        Value("slow movers", "부진 상품", "stock >= 80"),
        Value("scarce products", "품귀 상품", "stock < 10"),
        Value("premium products", "고급 상품", "price >= 80"),
    ],
}

# Every frame takes the noun phrase as {np}; "count" frames in Korean also take the counter as {unit}.
FRAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("list", "en"): ("List the {np}.", "Show me the {np}.", "Give me the {np}.", "I need the {np}.",
                     "Can you find the {np}?", "What are the {np}?"),
    ("list", "ko"): ("{np}[을/를] 보여줘.", "{np}[을/를] 알려주세요.", "{np}[이/가] 뭐야?", "{np} 목록이 필요해.",
                     "{np}[을/를] 찾아줘.", "{np}[은/는] 무엇인가요?"),
    ("count", "en"): ("How many {np} are there?", "Count the {np}.", "What is the number of {np}?",
                      "Give me the count of {np}.", "Tell me how many {np} we have.", "How many {np} do we have?"),
    ("count", "ko"): ("{np}[은/는] 몇 {unit}이야?", "{np} 수를 알려줘.", "{np}[이/가] 몇 {unit} 있어?",
                      "{np}[을/를] 세어줘.", "{np}[은/는] 모두 몇 {unit}인가요?", "{np} 수가 궁금해."),
    ("value", "en"): ("What is the {np}?", "Tell me the {np}.", "Calculate the {np}.", "I want to know the {np}.",
                      "Please report the {np}.", "Give me the {np}."),
    ("value", "ko"): ("{np}[은/는] 얼마야?", "{np}[을/를] 알려줘.", "{np}[을/를] 계산해줘.", "{np}[이/가] 궁금해.",
                      "{np}[을/를] 구해주세요.", "{np}[은/는] 얼마인가요?"),
    ("table", "en"): ("Show the {np}.", "Give me the {np}.", "Report the {np}.", "I want to see the {np}.",
                      "Summarise the {np}.", "What is the {np}?"),
    ("table", "ko"): ("{np}[을/를] 보여줘.", "{np}[을/를] 정리해줘.", "{np}[을/를] 집계해줘.", "{np} 표를 만들어줘.",
                      "{np}[이/가] 어떻게 돼?", "{np}[을/를] 알려주세요."),
}

_IN_MONTH = "ordered LIKE '{month}%'"
_BOUGHT = "FROM orders JOIN customers USING (customer_id)"
_SOLD = "FROM items JOIN products USING (product_id)"
_SUPPLIED = "FROM products JOIN suppliers USING (supplier_id)"

FAMILIES: tuple[Family, ...] = (
    # filter
    Family("customers_city_tier", "list", "SELECT name FROM customers WHERE city = '{city}' AND tier = '{tier}'",
           ("{tier} customers in {city}", "names of {tier} customers from {city}"),
           ("{city}의 {tier} 고객", "{city}에 사는 {tier} 등급 고객 이름"),
           "Who holds the {tier} tier in {city}", "{city} 지역 {tier} 회원 명단"),
    Family("products_category", "list", "SELECT product FROM products WHERE category = '{category}'",
           ("{category} products", "products in the {category} category", "names of our {category} items"),
           ("{category} 상품", "{category} 분류의 상품", "{category} 카테고리 상품 이름"),
           "Everything on the {category} shelf", "{category} 매대에 있는 물건"),
    Family("products_category_below", "list",
           "SELECT product FROM products WHERE category = '{category}' AND price < {price}",
           ("{category} products below {price} dollars", "{category} products cheaper than {price} dollars"),
           ("{price}달러 미만 {category} 상품", "{price}달러보다 싼 {category} 상품"),
           "Affordable {category}, less than {price}", "{category} 중 가격이 {price} 아래인 것"),
    Family("products_above", "list", "SELECT product FROM products WHERE price > {price}",
           ("products above {price} dollars", "products that cost more than {price} dollars"),
           ("{price}달러 넘는 상품", "{price}달러보다 비싼 상품"),
           "Goods priced over {price}", "가격이 {price}[을/를] 웃도는 물건"),
    Family("orders_status_month", "list",
           f"SELECT order_id FROM orders WHERE status = '{{status}}' AND {_IN_MONTH}",
           ("{status} orders from {month}", "orders of {month} with status {status}"),
           ("{month} {status} 주문", "{month} 주문 중 {status} 상태인 주문"),
           "Order numbers marked {status}, {month}", "{month}에 {status}[으로/로] 표시된 주문 번호"),
    Family("orders_above", "list", "SELECT order_id FROM orders WHERE total > {total} AND status = '{status}'",
           ("{status} orders above {total} dollars", "{status} orders worth more than {total} dollars"),
           ("{total}달러 넘는 {status} 주문", "금액이 {total}달러보다 큰 {status} 주문"),
           "Order numbers over {total} whose state is {status}", "총액 {total} 초과이며 {status} 상태인 주문 번호"),
    Family("suppliers_country", "list", "SELECT supplier FROM suppliers WHERE country = '{country}'",
           ("suppliers in {country}", "suppliers from {country}", "names of suppliers based in {country}"),
           ("{country} 공급업체", "{country}에 있는 공급업체", "{country} 공급업체 이름"),
           "Who delivers to us out of {country}", "{country}에서 납품하는 회사"),
    # aggregate
    Family("count_customers_city", "count", "SELECT COUNT(*) FROM customers WHERE city = '{city}'",
           ("customers in {city}", "customers from {city}", "customers living in {city}"),
           ("{city} 고객", "{city}에 사는 고객", "{city} 지역 고객"),
           "Size of our {city} clientele", "{city} 회원 규모", "명"),
    Family("count_orders_month", "count", f"SELECT COUNT(*) FROM orders WHERE {_IN_MONTH}",
           ("orders in {month}", "orders placed in {month}", "orders from {month}"),
           ("{month} 주문", "{month}에 들어온 주문", "{month}에 한 주문"),
           "How busy {month} was", "{month} 접수 물량", "건"),
    Family("count_orders_status_month", "count",
           f"SELECT COUNT(*) FROM orders WHERE status = '{{status}}' AND {_IN_MONTH}",
           ("{status} orders in {month}", "orders placed in {month} that are {status}"),
           ("{month}의 {status} 주문", "{month}에 들어온 {status} 주문"),
           "Tally of {status}, {month}", "{month} {status} 현황 집계", "건"),
    Family("avg_price_category", "value", "SELECT ROUND(AVG(price), 1) FROM products WHERE category = '{category}'",
           ("average price of {category} products", "mean price of {category}", "average {category} price"),
           ("{category} 상품 평균 가격", "{category} 평균 가격", "{category}의 가격 평균"),
           "Typical cost of {category}", "{category} 한 개의 보통 값"),
    Family("max_price_category", "value", "SELECT MAX(price) FROM products WHERE category = '{category}'",
           ("highest price of {category} products", "maximum price of {category}", "top {category} price"),
           ("{category} 상품 최고 가격", "{category} 최고가", "{category}의 가장 높은 가격"),
           "Most that one pays for {category}", "{category}에서 제일 비싼 값"),
    Family("revenue_month", "value", f"SELECT SUM(total) FROM orders WHERE {_IN_MONTH}",
           ("revenue in {month}", "total sales of {month}", "revenue from {month} orders"),
           ("{month} 매출", "{month} 총 판매액", "{month} 주문 매출"),
           "Money taken during {month}", "{month} 한 달 동안 벌어들인 돈"),
    Family("stock_category", "value", "SELECT SUM(stock) FROM products WHERE category = '{category}'",
           ("total stock of {category}", "stock of {category} products", "units of {category} in stock"),
           ("{category} 총 재고", "{category} 상품 재고", "{category} 재고 합계"),
           "Pieces of {category} in the warehouse", "창고에 있는 {category} 수량"),
    Family("average_order_status", "value",
           f"SELECT ROUND(AVG(total), 1) FROM orders WHERE status = '{{status}}' AND {_IN_MONTH}",
           ("average value of {status} orders in {month}", "mean total of {status} orders from {month}"),
           ("{month} {status} 주문 평균 금액", "{month}에 들어온 {status} 주문의 평균 금액"),
           "Typical basket, {status}, {month}", "{month} {status} 건의 보통 결제 크기"),
    Family("active_customers_month", "count",
           f"SELECT COUNT(DISTINCT customer_id) FROM orders WHERE {_IN_MONTH}",
           ("customers who ordered in {month}", "different customers with orders in {month}"),
           ("{month}에 주문한 고객", "{month} 주문 고객"),
           "Distinct buyers, {month}", "{month}의 서로 다른 구매자", "명"),
    # group
    Family("customers_per_city", "table",
           "SELECT city, COUNT(*) FROM customers WHERE tier = '{tier}' GROUP BY city",
           ("number of {tier} customers per city", "count of {tier} customers by city",
            "number of {tier} customers in each city"),
           ("도시별 {tier} 고객 수", "각 도시의 {tier} 고객 수", "도시마다 {tier} 등급 고객 수"),
           "Where {tier} members live", "{tier} 회원의 지역 분포"),
    Family("products_per_category", "table",
           "SELECT category, COUNT(*) FROM products WHERE price > {price} GROUP BY category",
           ("number of products above {price} dollars per category",
            "count of products over {price} dollars by category"),
           ("분류별 {price}달러 넘는 상품 수", "카테고리별로 {price}달러보다 비싼 상품 수"),
           "Spread of goods over {price} among the shelves", "가격 {price} 초과 물건의 매대별 분포"),
    Family("orders_per_status", "table", f"SELECT status, COUNT(*) FROM orders WHERE {_IN_MONTH} GROUP BY status",
           ("number of {month} orders per status", "count of orders in {month} by status",
            "number of orders from {month} for each status"),
           ("{month} 상태별 주문 수", "상태별 {month} 주문 수", "{month} 주문의 상태별 건수"),
           "Where the {month} orders stand", "{month} 진행 단계 현황"),
    Family("returns_per_reason", "table",
           "SELECT reason, COUNT(*) FROM returns WHERE returned LIKE '{month}%' GROUP BY reason",
           ("number of {month} returns per reason", "count of returns in {month} by reason",
            "number of returns from {month} for each reason"),
           ("{month} 사유별 반품 수", "사유별 {month} 반품 수", "{month} 반품의 사유별 건수"),
           "Why parcels came back, {month}", "{month}에 돌아온 물건의 이유"),
    Family("payments_per_method", "table",
           "SELECT method, COUNT(*) FROM payments WHERE paid LIKE '{month}%' GROUP BY method",
           ("number of {month} payments per method", "count of payments in {month} by method",
            "number of payments from {month} for each method"),
           ("{month} 수단별 결제 수", "결제 수단별 {month} 결제 수", "{month} 결제의 수단별 건수"),
           "How people paid, {month}", "{month} 지불 방식 현황"),
    Family("average_price_per_category", "table",
           f"SELECT category, ROUND(AVG(price), 1) {_SUPPLIED} WHERE country = '{{country}}' GROUP BY category",
           ("average price per category for {country} suppliers", "mean price of goods from {country} by category"),
           ("{country} 공급업체 상품의 분류별 평균 가격", "분류별 {country} 상품 평균 가격"),
           "Typical cost by shelf, origin {country}", "{country}산 물건의 매대별 보통 값"),
    # join
    Family("orders_city", "count", f"SELECT COUNT(*) {_BOUGHT} WHERE city = '{{city}}'",
           ("orders from {city}", "orders by customers in {city}", "orders placed by {city} customers"),
           ("{city} 주문", "{city} 고객의 주문", "{city} 고객이 한 주문"),
           "Order traffic out of {city}", "{city}에서 접수된 물량", "건"),
    Family("revenue_city", "value", f"SELECT SUM(total) {_BOUGHT} WHERE city = '{{city}}'",
           ("revenue from {city}", "total sales to {city} customers", "revenue from customers in {city}"),
           ("{city} 매출", "{city} 고객 매출", "{city} 고객의 총 판매액"),
           "Money that {city} brings", "{city} 지역이 벌어다 준 돈"),
    Family("revenue_tier_month", "value",
           f"SELECT SUM(total) {_BOUGHT} WHERE tier = '{{tier}}' AND {_IN_MONTH}",
           ("revenue from {tier} customers in {month}", "total {month} sales to {tier} customers"),
           ("{month} {tier} 고객 매출", "{tier} 고객의 {month} 총 판매액"),
           "What the {tier} tier spent during {month}", "{tier} 회원이 {month}에 쓴 돈"),
    Family("products_country", "list", f"SELECT product {_SUPPLIED} WHERE country = '{{country}}'",
           ("products from {country}", "products supplied from {country}", "products of suppliers in {country}"),
           ("{country} 상품", "{country}에서 온 상품", "{country} 공급업체의 상품"),
           "Goods with origin {country}", "원산지가 {country}인 물건"),
    Family("quantity_sold_category", "value", f"SELECT SUM(qty) {_SOLD} WHERE category = '{{category}}'",
           ("quantity of {category} sold", "number of {category} units sold", "total {category} quantity sold"),
           ("{category} 판매 수량", "팔린 {category} 수량", "{category} 상품의 총 판매 수량"),
           "Pieces of {category} that left the shop", "{category} 출고 개수"),
    Family("returns_category_reason", "count",
           "SELECT COUNT(*) FROM returns JOIN products USING (product_id) "
           "WHERE category = '{category}' AND reason = '{reason}'",
           ("{category} returns with reason {reason}", "returns of {category} products because of {reason}"),
           ("{reason} 사유의 {category} 반품", "{reason} 때문에 온 {category} 상품 반품"),
           "Sent back: {category}, {reason}", "{category} 회수 내역, 이유는 {reason}", "건"),
    Family("revenue_method_month", "value",
           "SELECT SUM(total) FROM payments JOIN orders USING (order_id) "
           "WHERE method = '{method}' AND paid LIKE '{month}%'",
           ("amount paid by {method} in {month}", "total {month} payments by {method}"),
           ("{month} {method} 결제 금액", "{month}에 {method}[으로/로] 결제한 총 금액"),
           "Money received by {method} during {month}", "{month}에 {method}[으로/로] 받은 돈"),
    # order + limit
    Family("expensive_category", "list",
           "SELECT product FROM products WHERE category = '{category}' ORDER BY price DESC, product LIMIT {k}",
           ("{k} most expensive {category} products", "top {k} {category} products by price"),
           ("가장 비싼 {category} 상품 {k}개", "가격이 높은 {category} 상품 {k}개"),
           "{category}, dearest {k}", "값나가는 {category} 순서대로 {k}가지"),
    Family("cheapest_category", "list",
           "SELECT product FROM products WHERE category = '{category}' ORDER BY price, product LIMIT {k}",
           ("{k} cheapest {category} products", "{k} {category} products with the lowest price"),
           ("가장 싼 {category} 상품 {k}개", "가격이 낮은 {category} 상품 {k}개"),
           "{category}, bargain {k}", "부담 없는 {category} 순서대로 {k}가지"),
    Family("largest_orders_month", "list",
           f"SELECT order_id FROM orders WHERE {_IN_MONTH} ORDER BY total DESC, order_id LIMIT {{k}}",
           ("{k} largest orders of {month}", "top {k} orders in {month} by total"),
           ("{month} 가장 큰 주문 {k}건", "{month} 금액 상위 주문 {k}건"),
           "Best {k} sales, {month}", "{month} 최대 거래 {k}가지"),
    Family("customers_most_orders", "list",
           f"SELECT name {_BOUGHT} WHERE city = '{{city}}' GROUP BY customer_id "
           "ORDER BY COUNT(*) DESC, name LIMIT {k}",
           ("{k} customers in {city} with the most orders", "top {k} {city} customers by number of orders"),
           ("{city}에서 주문이 가장 많은 고객 {k}명", "{city} 주문 수 상위 고객 {k}명"),
           "Busiest {k} buyers, {city}", "{city}에서 자주 사는 사람 {k}분"),
    Family("best_sellers_category", "list",
           f"SELECT product {_SOLD} WHERE category = '{{category}}' GROUP BY product_id "
           "ORDER BY SUM(qty) DESC, product LIMIT {k}",
           ("{k} best selling {category} products", "top {k} {category} products by quantity sold"),
           ("가장 많이 팔린 {category} 상품 {k}개", "판매 수량 상위 {category} 상품 {k}개"),
           "{category} that flies off the shelf, first {k}", "잘 나가는 {category} {k}가지"),
    Family("newest_customers_city", "list",
           "SELECT name FROM customers WHERE city = '{city}' ORDER BY joined DESC, name LIMIT {k}",
           ("{k} newest customers in {city}", "last {k} customers who joined in {city}"),
           ("{city}에서 최근 가입한 고객 {k}명", "{city}의 가장 새로운 고객 {k}명"),
           "Latest {k} sign-ups, {city}", "{city} 막 등록한 사람 {k}분"),
    # date ranges
    Family("orders_since", "count",
           "SELECT COUNT(*) FROM orders WHERE ordered >= '{month}-01' AND status = '{status}'",
           ("{status} orders since {month}", "{status} orders placed from {month} on"),
           ("{month}부터 {status} 주문", "{month} 이후 들어온 {status} 주문"),
           "Tally of {status} starting with {month}", "{month} 시작으로 누적된 {status} 물량", "건"),
    Family("joined_before", "list",
           "SELECT name FROM customers WHERE city = '{city}' AND joined < '{month}-01'",
           ("customers in {city} who joined before {month}", "{city} customers with a join date before {month}"),
           ("{month} 전에 가입한 {city} 고객", "{city} 고객 중 {month} 이전에 가입한 고객"),
           "Early members, {city}, up to {month}", "{month} 앞서 등록한 {city} 회원"),
    # negation
    Family("customers_without_orders", "list",
           "SELECT name FROM customers WHERE city = '{city}' AND customer_id NOT IN (SELECT customer_id FROM orders)",
           ("customers in {city} without orders", "{city} customers who never ordered"),
           ("주문이 없는 {city} 고객", "한 번도 주문하지 않은 {city} 고객"),
           "Silent accounts, {city}", "{city}에서 구매 이력이 비어 있는 회원"),
    Family("products_never_sold", "list",
           "SELECT product FROM products WHERE category = '{category}' "
           "AND product_id NOT IN (SELECT product_id FROM items)",
           ("{category} products that were never sold", "unsold {category} products"),
           ("한 번도 팔리지 않은 {category} 상품", "안 팔린 {category} 상품"),
           "{category} nobody bought", "판매 이력이 비어 있는 {category}"),
    Family("customers_not_tier", "count",
           "SELECT COUNT(*) FROM customers WHERE city = '{city}' AND tier <> '{tier}'",
           ("customers in {city} who are not {tier}", "{city} customers outside the {tier} tier"),
           ("{tier}[이/가] 아닌 {city} 고객", "{city} 고객 중 {tier} 등급이 아닌 고객"),
           "{city} members except {tier}", "{tier}[을/를] 제외한 {city} 회원", "명"),
    # having
    Family("cities_min_customers", "list",
           "SELECT city FROM customers WHERE tier = '{tier}' GROUP BY city HAVING COUNT(*) >= {least}",
           ("cities with at least {least} {tier} customers", "cities that have {least} or more {tier} customers"),
           ("{tier} 고객이 {least}명 이상인 도시", "{tier} 등급 고객 {least}명 이상 있는 도시"),
           "Strongholds of the {tier} tier, {least} and up", "{tier} 회원이 {least}[을/를] 넘기는 지역"),
    Family("customers_min_orders", "list",
           f"SELECT name {_BOUGHT} WHERE city = '{{city}}' GROUP BY customer_id HAVING COUNT(*) >= {{least}}",
           ("customers in {city} with at least {least} orders", "{city} customers who made {least} or more orders"),
           ("주문이 {least}건 이상인 {city} 고객", "{city} 고객 중 {least}건 이상 주문한 고객"),
           "Frequent buyers, {city}, {least} and up", "{city}에서 {least}회 넘게 사 간 사람"),
    # glossary
    Family("count_term_orders_month", "count", f"SELECT COUNT(*) FROM orders WHERE {{order_term}} AND {_IN_MONTH}",
           ("{order_term} in {month}", "{order_term} placed in {month}"),
           ("{month} {order_term}", "{month}에 들어온 {order_term}"),
           "Tally of {order_term}, {month}", "{month} {order_term} 현황", "건"),
    Family("term_orders_city", "list", f"SELECT order_id {_BOUGHT} WHERE {{order_term}} AND city = '{{city}}'",
           ("{order_term} from {city}", "{order_term} of customers in {city}"),
           ("{city} {order_term}", "{city} 고객의 {order_term}"),
           "Order numbers: {order_term}, {city}", "{city} 지역 {order_term} 번호"),
    Family("term_orders_per_city", "table", f"SELECT city, COUNT(*) {_BOUGHT} WHERE {{order_term}} GROUP BY city",
           ("number of {order_term} per city", "count of {order_term} by city", "number of {order_term} in each city"),
           ("도시별 {order_term} 수", "각 도시의 {order_term} 수", "도시마다 {order_term} 건수"),
           "Where {order_term} come from", "{order_term}의 지역 분포"),
    Family("term_customers_city", "list", "SELECT name FROM customers WHERE {customer_term} AND city = '{city}'",
           ("{customer_term} in {city}", "names of {customer_term} from {city}"),
           ("{city} {customer_term}", "{city}에 사는 {customer_term} 이름"),
           "Register of {customer_term}, {city}", "{city} 지역 {customer_term} 명단"),
    Family("count_term_customers_tier", "count",
           "SELECT COUNT(*) FROM customers WHERE {customer_term} AND tier = '{tier}'",
           ("{customer_term} in the {tier} tier", "{customer_term} with {tier} tier"),
           ("{tier} 등급 {customer_term}", "{tier} {customer_term}"),
           "Tally of {customer_term}, {tier}", "{tier} 회원 가운데 {customer_term} 규모", "명"),
    Family("term_customers_per_city", "table",
           "SELECT city, COUNT(*) FROM customers WHERE {customer_term} GROUP BY city",
           ("number of {customer_term} per city", "count of {customer_term} by city",
            "number of {customer_term} in each city"),
           ("도시별 {customer_term} 수", "각 도시의 {customer_term} 수", "도시마다 {customer_term} 수"),
           "Where {customer_term} live", "{customer_term}의 지역 분포"),
    Family("term_products_category", "list",
           "SELECT product FROM products WHERE {product_term} AND category = '{category}'",
           ("{product_term} in the {category} category", "{product_term} among {category}"),
           ("{category} {product_term}", "{category} 분류의 {product_term}"),
           "Register of {product_term}, {category}", "{category} 매대의 {product_term} 명단"),
    Family("count_term_products_country", "count",
           f"SELECT COUNT(*) {_SUPPLIED} WHERE {{product_term}} AND country = '{{country}}'",
           ("{product_term} from {country}", "{product_term} supplied from {country}"),
           ("{country} {product_term}", "{country}에서 온 {product_term}"),
           "Tally of {product_term}, origin {country}", "{country}산 {product_term} 규모"),
)
