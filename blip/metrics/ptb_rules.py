r"""What counts as one token for Stanford's Penn Treebank tokenizer, version 3.4.1.

The published scores of captions were made with that version. Its tastes: "can not", "do n't", "it 's"
are two tokens, "black/white", "well-known", "5 1/2" and ":-)" are one, and an abbreviation keeps its
dot. Patterns are those of `blip.metrics.lexing`. Oddities belong to it: Unicode is that of 2012, some
sets know one case only, and some rules never win.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from blip.metrics.lexing import Class

# What becomes of the text of a token: as it is; nothing; without soft hyphens; with LaTeX's quotes;
# without entities; without spaces, and without brackets; replaced by its name; of an initial, bare.
Kind = Literal[
    "plain",
    "skip",
    "word",
    "quotes",
    "entity",
    "spaced",
    "phone",
    "sign",
    "abbreviation",
    "initial",
]


class Token(NamedTuple):
    """What a token may look like, and how it is written.

    Attributes:
        pattern: What it looks like.
        following: What must stand behind it.
        kind: What becomes of its text.
        back: The number of characters at its end that the next token begins with. They are cut
            off, except from an abbreviation, whose dot then ends the sentence too.
    """

    pattern: str
    following: str = ""
    kind: Kind = "plain"
    back: int = 0


def classes() -> Mapping[str, Class]:
    """Give what tells the characters of a class, by its name."""
    newer_letters = characters(_NEWER_LETTERS)
    newer_digits = characters("0DE6-0DEF A9F0-A9F9")
    one_case = characters("13A0-13F5")  # Cherokee has two since 2015
    return {
        "letter": lambda c: (c.isalpha() and c not in newer_letters) or c in "\u1885\u1886",
        "upper": lambda c: c.isupper() and c not in newer_letters and c not in one_case,
        "digit": lambda c: c.isdecimal() and c not in newer_digits,
        "mark": characters(_MARKS).__contains__,
        "symbol": characters(_SYMBOLS).__contains__,
    }


def characters(ranges: str) -> frozenset[str]:
    """Give the characters of ranges like `0041-005A 0061`."""
    found: set[str] = set()
    for part in ranges.split():
        first, _, last = part.partition("-")
        found.update(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    return frozenset(found)


# Letters since Unicode 6.2.
_NEWER_LETTERS = """
    037F 0528-052F 0560 0588 05EF 0860-086A 0870-0887 0889-088E 08A1 08AD-08C9 0978 0980 09FC 0AF9
    0C34 0C5A 0C5D 0C80 0CDD 0D04 0D54-0D56 0D5F 0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC
    13F5 13F8-13FD 16F1-16F8 170D 171F 1878 191D-191E 19B0-19C0 19C8-19C9 1B4C 1C80-1C8A 1C90-1CBA
    1CBD-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF A698-A69D A78F
    A794-A79F A7AB-A7CD A7D0-A7D1 A7D3 A7D5-A7DC A7F2-A7F7 A8FD-A8FE A9E0-A9E4 A9E6-A9EF A9FA-A9FE
    AA7E-AA7F AB30-AB5A AB5C-AB69 AB70-ABBF"""

# Soft hyphen, accents, vowel signs: what else may stand in a word.
_MARKS = """
    00AD 02C2-02C5 02D2-02DF 02E5-02EB 02ED 02EF-036F 0375 0378-0379 0384-0385 03F6 0483-0487
    055A-055F 0591-05BD 05BF 05C1-05C2 05C4-05C5 05C7 0615-061A 064B-065E 0670 06D6-06E4 06E7-06ED
    06FD-06FE 070F 0711 0730-074C 07A6-07B0 07EB-07F3 0900-0903 093C 093E-094E 0951-0955 0962-0963
    0981-0983 09BC 09BE-09C4 09C7-09C8 09CB-09CD 09D7 09E2-09E3 0A01-0A03 0A3C 0A3E-0A4F 0A81-0A83
    0ABC 0ABE-0ACF 0B82 0BBE-0BC2 0BC6-0BC8 0BCA-0BCD 0C01-0C03 0C3E-0C56 0D3E-0D44 0D46-0D48 0E31
    0E34-0E3A 0E47-0E4E 0EB1 0EB4-0EBC 0EC8-0ECD"""

# Signs that are tokens by themselves.
_SYMBOLS = """
    0025-0026 002B 005C 005E 007C 007E 00A1 00A6-00A9 00AC 00AE-00B4 00B6-00B9 00BF 00D7 00F7 037E
    0387 0589 05BE 05C0 05C3 05C6 05F3-05F4 0600-0603 0606-060A 060C 0614 061B 061E-061F 066A 066D
    06D4 0700-070D 07F6-07F8 0964-0965 0E4F 1FBD 2016-2017 2020-2023 2030-2038 203B 203E-2042 2044
    207A-207E 208A-208E 2100-2101 2103-2106 2108-2109 2114 2116-2118 211E-2123 2125 2127 2129 212E
    213A-213B 2140-2144 214A-214D 214F 2190-2BFF 3002 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40
    FF5B-FF65"""

# Letters that a letter of a pattern matches besides its two cases: K of kelvin, long s, Turkish i.
TWINS = {"k": "\u212a", "s": "\u017f", "i": "\u0130\u0131"}

NAMES = {
    "SPACE": r"[ \t\u00A0\u2000-\u200A\u3000]",
    "NEWLINE": r"\r?\n|[\r\u000B\f\u0085\u2028\u2029]",
    "GAP": "{SPACE}|{NEWLINE}",
    "DIGIT": "[[:digit:]]",
    "ALNUM": "[[:letter:][:digit:]]",
    # Words
    "ATTRIBUTE": r"[A-Za-z][A-Za-z0-9_:.\-]*",
    "TAG": r"<([!\?][A-Za-z\-][^>\r\n]*"
    r"""|{ATTRIBUTE}( +{ATTRIBUTE}( *= *('[^']*'|"[^"]*"))?)* */?|/{ATTRIBUTE}) *>""",
    "ENTITY": "&[AEIOUaeiou](acute|grave|uml);",
    "LETTER": "[[:letter:][:mark:]]|{ENTITY}",
    "SYLLABLE": "{LETTER}({LETTER}|{DIGIT})*",
    "WORD": "{SYLLABLE}([.!?]{SYLLABLE})*",
    "APOSTROPHE": r"['\u0092\u2019]|&apos;",
    "TICK": r"{APOSTROPHE}|[`\u0091\u2018\u201B]",
    "CLITIC": "{APOSTROPHE}([msdMSD]|re|ve|ll)",
    "NOT": "n{TICK}t",
    "BEFORE_NOT": r"[A-Za-z\u00AD]*[A-MO-Za-mo-z]\u00AD*",
    "ELIDED": r"[lLdDjJ]{APOSTROPHE}|(dunkin|somethin|ol){APOSTROPHE}"
    r"|{APOSTROPHE}(n{APOSTROPHE}?|em|till?|cause|[2-9]0s)"
    r"|[A-HJ-XZn]{TICK}[[:letter:]]{2,}|[[:letter:]]+[AEIOUYaeiouy]{TICK}[A-Zaeiou][[:letter:]]*"
    r"|cont'd.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o{TICK}o",
    "HYPHEN": r"[\-_\u058A\u2010\u2011]",
    "PARTICLE": "([dDlLoO]{TICK}{ALNUM})?",
    "COMPOUND": "{PARTICLE}{ALNUM}+({HYPHEN}{PARTICLE}{ALNUM}+)*",
    "NATIONS": r"(canada|sino|korean|eu|japan|non)\-u.s|u.s.\-(u.k|u.s.s.r)",
    "INITIALS": "[A-Za-z](.[A-Za-z])+|{NATIONS}",
    "INITIAL": "[A-Za-z](.[A-Za-z])*|{NATIONS}",
    "HYPHENED": r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(\-([A-Za-z0-9\u00AD]+|{INITIALS}.))+",
    "SLASHED": r"[A-Za-z0-9]+(\-[A-Za-z]+){0,2}(\\?/[A-Za-z0-9]+(\-[A-Za-z]+){0,2}){1,2}",
    "JOINED": "[A-Z]+(([+&]|&amp;)[A-Z]+)+",
    "SPECIAL": r"\-(RRB|LRB|RCB|LCB|RSB|LSB)\-|C.D.s|pro\-|anti\-|S(&|&amp;)(P\-500|Ls)"
    r"|Cap{APOSTROPHE}n|c{APOSTROPHE}est",
    # Numbers
    "NUMBER": r"[\-+]?({DIGIT}+|{DIGIT}*([.:,\u00AD\u066B\u066C]{DIGIT}+)+)",
    "DATE": r"{DIGIT}{1,2}[\-/]{DIGIT}{1,2}[\-/]{DIGIT}{2,4}",
    "RAISED": r"[\u207A\u207B\u208A\u208B]?([\u00B2\u00B3\u00B9\u2070\u2074-\u2079]+|[\u2080-\u2089]+)",
    "FRACTION": r"({DIGIT}{1,4}[\- \u00A0])?{DIGIT}{1,4}(\\?/|\u2044){DIGIT}{1,4}",
    "CURRENCY": r"[\u0080\u00A2-\u00A5\u060B\u0E3F\u20A0\u20A4\u20AC\uFFE0\uFFE1\uFFE5\uFFE6]",
    "JOIN": r"[\- \u00A0]",
    "PHONE": r"(\([0-9]{2,3}\)[ \u00A0]?|(\+\+?)?([0-9]{2,4}{JOIN})?[0-9]{2,4}{JOIN})"
    r"[0-9]{3,4}{JOIN}?[0-9]{3,5}"
    r"|((\+\+?)?[0-9]{2,4}.)?[0-9]{2,4}.[0-9]{3,4}.[0-9]{3,5}",
    # Abbreviations
    "MONTH": "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    "DAY": "mon|tues?|wed|thu|thurs|fri",
    "STATE": "ala|ariz|[A]z|[A]rk|calif|colo|conn|ct|dak|[D]el|fla|ga|[I]ll|ind|kans?|ky|[L]a"
    "|[M]ass|md|mich|minn|[M]iss|mo|mont|neb|nev|okla|[O]re|[P]a|penn|tenn|[T]ex|va|vt|[W]ash|wisc?"
    "|wyo",
    "FIRM": "inc|cos?|corp|pp?t[ye]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys",
    "BEFORE_LOWER": "({MONTH}|{DAY}|{STATE}|{FIRM}|tel|est|ext|sq|jr|sr|bros|blvd|rd|(ed|ph).d|esq"
    "|etc|al|seq|bldg).",
    "TITLE": "mr|mrs|ms|[M]iss|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt"
    "|cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc"
    "|ens|insp|mlle|mme|msgr|sfc",
    "BEFORE_UPPER": "{TITLE}|vs|alex|wm|jos|cie|a.k.a|cf|treas|ph|{INITIAL}|invt|elec|natl|m[ft]g"
    "|dept",
    "BEFORE_NUMBER": "(ca|figs?|prop|nos?|art|bldg|pp|op).",
    "SENTENCE": "{GAP}({GAP}|[[:upper:]]|{TAG})",
    "OPENER": "[A](|bout|ccording|dditionally|fter|n|s|t)|[B]ut|[E]arlier|[H]e(|r|re)|[H]owever"
    "|[I](f|n|t)|[L]ast|[M]any|[M]ore|[M](r|s).|[N]ow|[O]nce|[O]ne|[O]ther|[O]ur|[S]he|[S]ince"
    "|[S]o(|me)|[S]uch|[T]hat|[T]he(|ir|n|re|se|y)|[T]his|[W]e|[W]hen|[W]hile|[W]hat|[Y]et|[Y]ou",
    # What came from the web
    "URL": r"""https?://[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]""",
    "SITE": r"""(www.([^ \t\n\f\r"<>|.!?(){},]+.)+[A-Za-z]{2,4}"""
    r"""|([^ \t\n\f\r"`'<>|.!?(){},-_$]+.)+(com|net|org|edu))"""
    r"""(/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-])?""",
    "MAIL": r"""(&lt;|<)?[A-Za-z0-9][^ \t\n\f\r"<>|()\u00A0{}]*@([^ \t\n\f\r"<>|().\u00A0{}]+.)*"""
    r"""[^ \t\n\f\r"<>|().\u00A0{}]+(&gt;|>)?""",
    "FILE": "({LETTER}|{DIGIT})+(.({LETTER}|{DIGIT})+)*.(bat|bmp|c|class|cgi|cpp|dll|docx?|exe"
    "|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)",
    "SMILEY": r"[<>]?[:;=][\-o\*']?[\(\)DPdpO\\{@\|\[\]]",
    "FACE": r"[\^x=~<>].\[\^x=[^<]*<>]|[\-\^x=~<>']_[\-\^x=~<>']"
    r"|\([\-\^x=~<>'][_.]?[\-\^x=~<>']\)|\([\^x=~<>']\-[\^x=~<>'`]\)",
    # Punctuation
    "DASH": r"&(MD|mdash|ndash);|[\u0096\u0097\u2013-\u2015]",
    "ELLIPSIS": r".{3,5}|(.[ \u00A0]){2,4}.|[\u0085\u2026]",
    "COMMA": r"[,;:\u3001]",
    "DOUBLE": '"|&quot;',
    "QUOTES": r"{APOSTROPHE}|''|[`\u0091-\u0094\u00AB\u00BB\u2018-\u201F\u2039\u203A]{1,2}",
}

# Words that are two tokens though they have no sign between them.
TWO_IN_ONE = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])

# Of equally long ones the first counts.
TOKENS = [
    Token("cannot|'twas", back=3),
    Token("'tis|gonna|gotta|lemme|gimme|wanna", back=2),
    Token("{TAG}", kind="spaced"),
    Token("{DASH}", kind="skip"),
    Token("&amp;", kind="entity"),
    Token("&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    Token(r"c\+\+|(c|f)#"),
    Token("{WORD}", "{CLITIC}", "word"),
    Token("{BEFORE_NOT}", "{NOT}", "word"),
    Token("{WORD}", kind="word"),
    Token("{ELIDED}"),
    Token("y{APOSTROPHE}", "[[:letter:]]"),
    Token("{URL}|{SITE}"),
    Token("{MAIL}"),
    Token("@[A-Za-z_][A-Za-z_0-9]*|#{LETTER}+"),
    Token("{CLITIC}|{NOT}", "[^A-Za-z]", "quotes"),
    Token("{DATE}"),
    Token("{NUMBER}", kind="word"),
    Token("{RAISED}"),
    Token("{FRACTION}", kind="spaced"),
    Token(r"[\u00BC-\u00BE\u2153-\u215E]", kind="sign"),
    Token("{SPECIAL}", kind="entity"),
    Token("{SLASHED}"),
    Token("[A-Z]*$|#"),
    Token("{CURRENCY}", kind="sign"),
    Token("({INITIAL}).", "({GAP})+({OPENER}|{TAG})({GAP})", "initial", back=1),
    Token("{BEFORE_NUMBER}", "({GAP})?{DIGIT}"),
    Token("(pt[EYey]|co).", "{SPACE}(ltd|lim)"),
    Token("{BEFORE_LOWER}", "{SENTENCE}", "abbreviation", back=1),
    Token("{BEFORE_LOWER}", "[^][^]"),
    Token("{BEFORE_LOWER}", kind="abbreviation", back=1),
    Token("({BEFORE_UPPER})."),
    Token("{BEFORE_UPPER}", "{SPACE}"),
    Token("{INITIAL}", "{GAP}"),
    Token("{APOSTROPHE}[0-9][0-9]", "{GAP}"),
    Token("{FILE}", "{GAP}|[.?!,]"),
    Token("{WORD}.", "{COMMA}", "word"),
    Token("{PHONE}", kind="phone"),
    Token("{DOUBLE}", "[A-Za-z0-9$]", "quotes"),
    Token("{DOUBLE}", kind="quotes"),
    Token(r"\u007F", kind="skip"),
    Token("<|>|&lt;|&gt;", kind="entity"),
    Token("{SMILEY}", "[^A-Za-z0-9]", "phone"),
    Token("{FACE}", kind="phone"),
    Token(r"[\(\)\[\]\{\}]", kind="sign"),
    Token(r"\-+"),
    Token("{ELLIPSIS}", kind="skip"),
    Token("@+|#+|_+"),
    Token(r"\*+|(\\\*){1,3}"),
    Token("{COMMA}"),
    Token(r"[\?!]+"),
    Token(r"[.\u00A1\u00BF\u037E\u0589\u061F\u06D4\u0700-\u0702\u07FA\u3002]"),
    Token("="),
    Token("/"),
    Token("({HYPHENED}).", "{COMMA}", "word"),
    Token("{HYPHENED}", kind="word"),
    Token("({COMPOUND}).", "{COMMA}"),
    Token("{COMPOUND}"),
    Token("({JOINED}).", "{COMMA}", "entity"),
    Token("{JOINED}", kind="entity"),
    Token("'", r"[A-Za-z][^ \t\n\r\u00A0]", "skip"),
    Token("{CLITIC}|{NOT}", kind="quotes"),
    Token("{QUOTES}", kind="quotes"),
    Token("<<|>>"),
    Token("[[:symbol:]]"),
    Token(r"\u0000|({SPACE})+|[\u200B\u200E\u200F\uFEFF]", kind="skip"),
    Token("{NEWLINE}", kind="skip"),
    Token("&nbsp;", kind="skip"),
]
