"""Print a key file's form (armoured, binary) and the fingerprints of its primary keys; a bare host has no gpg.

Reads standard input. OpenPGP packets: RFC 9580, sections 4.2 (headers), 5.5.4 (fingerprints) and 6.2 (armour).
"""

import base64
import hashlib
import sys


def blocks(data):
    """Yield the binary form of each armoured block."""
    text = data.decode("ascii", "replace").replace("\r", "")
    for part in text.split("-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]:
        body = part.split("-----END PGP PUBLIC KEY BLOCK-----")[0]
        # After the armour's headers comes an empty line; a line with = at its front is the checksum.
        lines = [line.strip() for line in body.split("\n")]
        start = lines.index("", 1) if any(":" in line for line in lines[1:5]) else 0
        yield base64.b64decode("".join(line for line in lines[start:] if line and not line.startswith("=")))


def packets(data):
    """Yield (tag, body) of each packet."""
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise ValueError("no OpenPGP packet")
        at += 1
        if head & 0x40:
            tag, first = head & 0x3F, data[at]
            at += 1
            if first < 192:
                length = first
            elif first < 224:
                length = ((first - 192) << 8) + data[at] + 192
                at += 1
            elif first == 255:
                length = int.from_bytes(data[at : at + 4], "big")
                at += 4
            else:
                raise ValueError("a packet in pieces")
        else:
            tag, size = (head >> 2) & 0xF, 1 << (head & 3)
            if size == 8:
                raise ValueError("a packet without a length")
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield tag, data[at : at + length]
        at += length


def fingerprints(data):
    """Return the fingerprints of the primary keys (version 4) in a binary key."""
    found = []
    for tag, body in packets(data):
        if tag == 6:
            if body[:1] != b"\x04":
                raise ValueError(f"a key of version {body[:1].hex()}")
            # RFC 4880, 12.2: a fingerprint of version 4 is a SHA-1.
            digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
            found.append(digest.hexdigest().upper())
    return found


def main():
    """Say the key's form (asc or gpg) and its fingerprints, or that it is unreadable."""
    data = sys.stdin.buffer.read(1 << 20)
    armoured = b"-----BEGIN PGP PUBLIC KEY BLOCK-----" in data
    try:
        found = [one for block in (blocks(data) if armoured else [data]) for one in fingerprints(block)]
    except (ValueError, IndexError) as error:
        print(f"unreadable ({error})")
        return
    print("asc" if armoured else "gpg", ",".join(found))


main()
