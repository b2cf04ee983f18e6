"""What raw corpora are full of: copies, boilerplate, personal data, broken rows, noise, leaked test questions.

Each function returns the spoiled text or line; where it went is recorded by `corpus.py` in the ledger.
Personal data are made up: reserved e-mail domains, numbers and addresses (RFC 2606, RFC 5737, 555-01xx).
"""

from __future__ import annotations

import json
import random
import re
from typing import NamedTuple

from bloomery.pipelines.quickstart.grammar import expand
from bloomery.pipelines.quickstart.questions import Question

BOILERPLATE = {
    "en": (
        "Home | Shop | About us | Contact | Log in",
        "We use cookies. By browsing on you accept our cookie policy.",
        "© 2024 The Little Shop. All rights reserved. | Privacy | Terms | Sitemap",
        "Subscribe to our newsletter! Follow us: Facebook Twitter Instagram",
    ),
    "ko": (
        "홈 | 상품 | 회사 소개 | 문의 | 로그인",
        "이 사이트는 쿠키를 사용합니다. 계속 이용하면 쿠키 정책에 동의하는 것입니다.",
        "저작권 2024 작은 가게. 무단 전재 및 재배포 금지. | 개인정보처리방침 | 이용약관",
        "뉴스레터를 구독하세요! 공유하기 페이스북 트위터 인쇄",
    ),
}

FOREIGN = {
    "fr": (
        "Le magasin ouvre à {huit|neuf|dix} heures et ferme {tard|tôt} le {lundi|mardi|samedi}.",
        "Nous avons reçu {douze|trente|cinq} caisses de {livres|lampes|chaussures} venues {de Lyon|du port|d'Italie}.",
        "La cliente voulait rendre {un sac|une lampe|un jouet} parce que la couleur ne lui plaisait pas.",
        "Il faut signer le registre avant de quitter {l'entrepôt|la boutique}, même quand il pleut.",
        "Les commandes {urgentes|annulées|anciennes} sont rangées dans le tiroir du haut.",
    ),
    "de": (
        "Der Laden öffnet um {acht|neun|zehn} Uhr und schließt am {Montag|Freitag|Samstag} {später|früher}.",
        "Wir haben {zwölf|dreißig|fünf} Kisten mit {Büchern|Lampen|Schuhen} aus {Hamburg|Italien|dem Hafen} bekommen.",
        "Die Kundin wollte {eine Tasche|eine Lampe|ein Spielzeug} zurückgeben, weil ihr die Farbe nicht gefiel.",
        "Bitte unterschreiben Sie das Buch, bevor Sie {das Lager|den Laden} verlassen, auch wenn es regnet.",
        "Die {eiligen|stornierten|alten} Bestellungen liegen in der oberen Schublade.",
    ),
    "es": (
        "La tienda abre a las {ocho|nueve|diez} y cierra más {tarde|temprano} los {lunes|viernes|sábados}.",
        "Recibimos {doce|treinta|cinco} cajas de {libros|lámparas|zapatos} {de Sevilla|del puerto|de Italia}.",
        "La clienta quería devolver {un bolso|una lámpara|un juguete} porque no le gustaba el color.",
        "Hay que firmar el libro antes de salir {del almacén|de la tienda}, aunque llueva.",
        "Los pedidos {urgentes|cancelados|antiguos} se guardan en el cajón de arriba.",
    ),
    "ja": (
        "店は{八|九|十}時に開き、{月曜日|金曜日|土曜日}には{早く|遅く}閉まります。",
        "{京都|港|イタリア}から{本|照明|靴}の箱が{十二|三十|五}個届きました。",
        "お客様は色が気に入らないので{かばん|照明|おもちゃ}を返したいと言いました。",
        "雨の日でも{倉庫|店}を出る前に必ず名前を書いてください。",
        "{急ぎの|取り消した|古い}注文は上の引き出しに入れてあります。",
    ),
}

LEAK_CHANGES = ("verbatim", "case", "spacing")


class Pii(NamedTuple):
    """One made-up piece of personal data. `kind` is email, phone_kr, phone_us, card, ip or resident_number."""

    kind: str
    value: str


def luhn_digit(digits: str) -> str:
    """Return the check digit that makes `digits` + it a valid card number (ISO/IEC 7812-1)."""
    doubled = [int(d) * (2 if i % 2 == 0 else 1) for i, d in enumerate(reversed(digits))]
    return str(-sum(n - 9 if n > 9 else n for n in doubled) % 10)


def resident_digit(digits: str) -> str:
    """Return the 13th digit of a Korean resident registration number from its first twelve."""
    total = sum(
        int(d) * weight for d, weight in zip(digits, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True)
    )
    return str((11 - total % 11) % 10)


def make_pii(kind: str, rng: random.Random) -> Pii:
    """Return a made-up value of `kind`; card and resident numbers carry valid check digits."""

    def number(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    if kind == "email":
        user = rng.choice(("minsu.kim", "jiwoo_lee", "sora", "emma.brown", "o.clark", "haneul77"))
        return Pii(
            kind, f"{user}{number(2)}@{rng.choice(('example.com', 'example.org', 'mail.example.net'))}"
        )
    if kind == "phone_kr":
        return Pii(
            kind,
            rng.choice(
                (
                    f"010-{number(4)}-{number(4)}",
                    f"02-{number(3)}-{number(4)}",
                    f"+82 10 {number(4)} {number(4)}",
                )
            ),
        )
    if kind == "phone_us":
        area = rng.choice(("206", "312", "415", "617"))
        return Pii(
            kind,
            rng.choice(
                (f"({area}) 555-01{number(2)}", f"{area}-555-01{number(2)}", f"+1 {area} 555 01{number(2)}")
            ),
        )
    if kind == "card":
        body = rng.choice("45") + number(14)
        whole = body + luhn_digit(body)
        return Pii(kind, rng.choice(("-", " ", "")).join(whole[i : i + 4] for i in range(0, 16, 4)))
    if kind == "ip":
        return Pii(kind, rng.choice(("192.0.2.", "198.51.100.", "203.0.113.")) + str(rng.randrange(1, 255)))
    body = f"{rng.randrange(60, 100)}{rng.randrange(1, 13):02d}{rng.randrange(1, 29):02d}{rng.choice('12')}{number(5)}"
    return Pii("resident_number", f"{body[:6]}-{body[6:]}{resident_digit(body)}")


PII_KINDS = ("email", "phone_kr", "phone_us", "card", "ip", "resident_number")


def pii_sentence(pii: Pii, language: str, glued: bool) -> str:
    """Return a sentence around `pii`; `glued` Korean ones leave no space between it and the Hangul beside it."""
    if language == "en":
        return {
            "email": f"Write to {pii.value} for details.",
            "ip": f"The last login came from {pii.value} at night.",
            "card": f"The card on file is {pii.value}.",
            "resident_number": f"ID number on the form: {pii.value}.",
        }.get(pii.kind, f"Call {pii.value} and ask for the manager.")
    space = "" if glued else " "
    noun = {
        "email": "메일은",
        "ip": "접속 주소는",
        "card": "카드번호는",
        "resident_number": "주민번호는",
    }.get(pii.kind, "연락처는")
    return f"{noun}{space}{pii.value}{space}입니다."


def edit_words(text: str, rate: float, vocabulary: list[str], rng: random.Random) -> tuple[str, int]:
    """Return `text` with a share `rate` of its words (at least one) replaced, dropped or doubled, and how many."""
    pieces = re.split(r"(\s+)", text)
    places = [i for i in range(0, len(pieces), 2) if pieces[i]]
    count = max(1, round(rate * len(places)))
    for place in rng.sample(places, count):
        pieces[place] = rng.choice(
            (rng.choice(vocabulary), rng.choice(vocabulary), "", f"{pieces[place]} {pieces[place]}")
        )
    return "".join(pieces), count


def drop_spaces(text: str, rate: float, rng: random.Random) -> tuple[str, int]:
    """Return `text` without a share `rate` of its spaces (at least one), and how many were dropped."""
    spaces = [i for i, character in enumerate(text) if character == " "]
    dropped = set(rng.sample(spaces, max(1, round(rate * len(spaces)))))
    return "".join(c for i, c in enumerate(text) if i not in dropped), len(dropped)


def broken_json(text: str, rng: random.Random) -> tuple[str, str]:
    """Return a line that is not JSON, made from a row with `text`, and what is wrong with it."""
    line = json.dumps({"text": text, "source": "notes"}, ensure_ascii=False)
    fault = rng.choice(("truncated", "single_quotes", "trailing_comma", "no_brace"))
    return {
        "truncated": line[: len(line) // 2],
        "single_quotes": "{'text': '" + text.replace("\n", " ") + "'}",
        "trailing_comma": line[:-1] + ",}",
        "no_brace": line[1:],
    }[fault], fault


def wrong_text_field(text: str, rng: random.Random) -> tuple[dict, str]:
    """Return a row whose `text` is missing, empty or no string, and what is wrong with it."""
    fault = rng.choice(("missing", "renamed", "null", "number", "list", "empty"))
    row = {
        "missing": {},
        "renamed": {"body": text},
        "null": {"text": None},
        "number": {"text": len(text)},
        "list": {"text": [text]},
        "empty": {"text": ""},
    }[fault]
    return {**row, "source": "notes"}, fault


def foreign_text(language: str, rng: random.Random) -> str:
    """Return a short paragraph in French, German, Spanish or Japanese ("fr", "de", "es", "ja")."""
    sentences = [expand(template, {}, rng) for template in rng.sample(FOREIGN[language], 4)]
    return ("" if language == "ja" else " ").join(sentences)


def gibberish(rng: random.Random) -> tuple[str, str]:
    """Return a document no reader could use, and what kind of noise it is."""
    kind = rng.choice(("keyboard", "symbols", "repeated", "hex", "jamo", "one_word"))
    length = rng.randrange(20, 60)
    if kind == "repeated":
        return " ".join([rng.choice(("buy", "click", "무료", "sale now", "대박"))] * length), kind
    if kind == "one_word":
        return rng.choice(("ok", "test", "네", "hello", "...", "확인", "asdf", "공지")), kind
    letters = {
        "keyboard": "asdfghjklqwe",
        "symbols": "#@$%&*!~^=+<>|",
        "hex": "0123456789abcdef",
        "jamo": "ㅋㅎㅁㄴㅇㄹㅠㅜ",
    }[kind]
    return " ".join("".join(rng.choices(letters, k=rng.randrange(3, 10))) for _ in range(length)), kind


def leak(question: Question, change: str) -> str:
    """Return an evaluation question with its SQL as a document would show it, verbatim or slightly changed."""
    text = question.text
    if change == "case":
        text = text.upper() if question.language == "en" else text.rstrip(".?!")
    elif change == "spacing":
        text = text.replace(" ", "  ") if question.language == "en" else text.replace(" ", "")
    return f"{text}\n\n```sql\n{question.sql}\n```"
