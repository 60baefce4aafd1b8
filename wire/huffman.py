"""The Huffman code of header fields, which is fixed: RFC 7541 section 5.2 and appendix B."""

from __future__ import annotations

from host.failure import Failure

# The octets by the number of bits of their code, from the shortest code on. The code is canonical: within a length the
# codes count up in the order of the octets. So these lengths say all of appendix B.
_BY_LENGTH = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: bytes.fromhex("5cc3d0"),
    20: bytes.fromhex("808283a2b8c2e0e2"),
    21: bytes.fromhex("99a1a7acb0b1b3d1d8d9e3e5e6"),
    22: bytes.fromhex("818485868892 9a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f9395969798 9b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: bytes.fromhex("098e9091949fabced7e1eced"),
    25: bytes.fromhex("c7cfeaeb"),
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("02030405060708 0b0c0e0f1011121314151718191a1b1c1d1e1f 7fdcf9"),
    30: bytes.fromhex("0a0d16"),
}
# The longest padding is one bit short of an octet.
_PADDING_BITS = 7


class BadHuffman(Failure):
    """Octets are no Huffman code (RFC 7541 section 5.2)."""


def _octets_by_code() -> dict[int, int]:
    """Return the octet of each code. A 1 is put before the bits of a code, so that the number tells their count too."""
    found, code, length = {}, 0, 0
    for bits, octets in _BY_LENGTH.items():
        code <<= bits - length
        length = bits
        for octet in octets:
            found[1 << bits | code] = octet
            code += 1
    return found


_OCTETS = _octets_by_code()
# The end of the string, EOS, is 30 ones. It is never sent: only its first bits are, as padding.
_END = (1 << 31) - 1


def decode(data: bytes) -> bytes:
    """Return the octets that a Huffman code stands for.

    Raises BadHuffman if the code holds EOS, or ends in anything but up to seven ones (RFC 7541 section 5.2).
    """
    out = bytearray()
    code = 1
    for byte in data:
        for shift in range(7, -1, -1):
            code = code << 1 | (byte >> shift & 1)
            octet = _OCTETS.get(code)
            if octet is not None:
                out.append(octet)
                code = 1
            elif code == _END:
                raise BadHuffman("a Huffman code holds the end of the string")
    if code & (code + 1) or code.bit_length() > _PADDING_BITS + 1:
        raise BadHuffman("a Huffman code is not padded with up to seven ones")
    return bytes(out)
