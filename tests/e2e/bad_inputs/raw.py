"""Bodies that are not a strict JSON object. Every endpoint rejects them with the same code."""

from tests.e2e.bad_inputs.rows import ABOVE, BELOW, TYPE

RAW: dict[str, list[tuple[bytes, str]]] = {
    "an empty body": [(body, "invalid_json") for body in (b"", b" ", b"\n\t\r ", b"\0")],
    "not an object": [(body, TYPE) for body in (b"null", b"[]", b'"Zebra"', b"1", b"true", b"-0", b"1e5", b"[{}]")],
    "almost JSON": [
        (body, "invalid_json")
        for body in (
            b'{"a":1,}',
            b"{'a':1}",
            b'{"a":1} //',
            b"{}{}",
            b"{} {}",
            b"{",
            b"}",
            b'{"a" 1}',
            b"{a:1}",
            b'{"a":01}',
        )
    ]
    + [
        (body, "invalid_json")
        for body in (b'{"a":.5}', b'{"a":+1}', b'{"a":1.}', b'{"a":"\t"}', b'{"a":"\\x41"}', b"{,}", b'{"":}')
    ],
    "other encodings": [
        (body, "invalid_json")
        for body in (b'{"a":"\xff"}', b'{"a":"\xc0\x80"}', b"\xef\xbb\xbf{}", b'{"a":"\xf4\x90\x80\x80"}')
    ]
    + [('{"a":"Zebra"}'.encode(name), "invalid_json") for name in ("utf-16", "utf-16-le", "utf-32", "utf-16-be")],
    "depth": [
        (body, "invalid_json")
        for body in (
            b"[" * 1000,
            b"[" * 100_000,
            b'{"a":' * 1000,
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
        )
    ],
    "invalid numbers": [
        (b'{"model":"smoe-demo",' + field + b"}", "invalid_json")
        for field in (
            b'"temperature":NaN',
            b'"x":Infinity',
            b'"model2":-Infinity',
            b'"n":1e999',
            b'"x":[-1e999]',
            b'"x":{"y":NaN}',
            b'"messages":NaN',
            b'"x":1e400',
        )
    ],
    "long integers": [
        (b'{"n":' + digits + b"}", code)
        for digits, code in (
            (b"9" * 4000, ABOVE),
            (b"9" * 5000, ABOVE),
            (b"-" + b"9" * 5000, BELOW),
            (b"9" * 500_000, ABOVE),
        )
    ],
    "a key twice": [
        (body, "invalid_json")
        for body in (
            b'{"n":1,"n":3}',
            b'{"messages":[],"messages":[]}',
            b'{"x":{"":1,"":2}}',
            b'{"a":1,"\\u0061":2}',
            b'{"x":[{"Zebra":1,"Zebra":1}]}',
        )
    ],
    "lone surrogates": [
        (body, "invalid_json")
        for body in (
            b'{"model":"\\ud800"}',
            b'{"\\udfff":1}',
            b'{"stop":["\\ud83d"]}',
            b'{"user":"\\ude00\\ud83d"}',
            b'{"a":"\xed\xa0\x80"}',
        )
    ]
    + [
        (b'{"tools":[{"function":{"name":"\\uD800"}}]}', "invalid_json"),
        (b'{"x":{"y":{"\\udead":[]}}}', "invalid_json"),
    ],
    "many small containers": [
        (body, "invalid_json")
        for body in (
            b'{"x":[' + b"[]," * 340_000 + b"[]]}",
            b"[" + b"{}," * 340_000 + b"{}]",
            b'{"x":"' + b'\\"' * 500_000,
            b'"' * 1_000_000,
        )
    ]
    + [(b'{"model":"' + b"\\" * 999_999, "invalid_json"), (b'{"a":"' + b"\\u" * 400_000, "invalid_json")],
}
