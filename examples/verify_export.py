"""Check what `fpso audit export` wrote, by hand: python verify_export.py EXPORT KEYFILE

KEYFILE holds verifier keys, one a line, as GET /v1/audit/keys gives them. Nothing here is of the FPSO System:
it needs the standard library and `cryptography`. The standards: RFC 9162 §2.1 (tree), RFC 8785 (canonical
JSON), https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint.
"""

import json
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


# RFC 8785 sorts members by UTF-16. The rest of it is what json.dumps writes below: events hold only text,
# whole numbers below 2^53, objects, lists, true, false and null, and no fractions, which it writes otherwise.
def sorted_object(members):
    return dict(sorted(members, key=lambda member: member[0].encode("utf-16-be")))


def leaf_hash(event):
    canonical = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return sha256(b"\x00" + canonical.encode()).digest()


def root_from(leaf, index, size, proof):  # RFC 9162 §2.1.3.2
    last, node = size - 1, leaf
    for sibling in proof:
        if index % 2 or index == last:
            node = sha256(b"\x01" + sibling + node).digest()
            while index % 2 == 0 and index:
                index, last = index // 2, last // 2
        else:
            node = sha256(b"\x01" + node + sibling).digest()
        index, last = index // 2, last // 2
    return node if last == 0 else None


def is_signed(text, signatures, key_line):
    name, _, key = key_line.strip().split("+", 2)
    kind_and_key = b64decode(key)  # 0x01 for Ed25519, and 32 bytes
    key_id = sha256(f"{name}\n".encode() + kind_and_key).digest()[:4]
    for line in signatures.splitlines():
        _, signer, signature = line.split(" ")
        if signer == name == text.split("\n")[0] and b64decode(signature)[:4] == key_id:
            try:
                Ed25519PublicKey.from_public_bytes(kind_and_key[1:]).verify(
                    b64decode(signature)[4:], text.encode()
                )
            except InvalidSignature:
                return False
            return True
    return False


export = json.loads(Path(sys.argv[1]).read_text("utf-8"), object_pairs_hook=sorted_object)
before, signatures = export["checkpoint"].rsplit("\n\n", 1)
text = before + "\n"
keys = [line for line in Path(sys.argv[2]).read_text("utf-8").splitlines() if line.strip()]
if not any(is_signed(text, signatures, key) for key in keys):
    sys.exit("the checkpoint is not signed by any of the keys")
_, size, root = text.splitlines()[:3]
for version, entry in enumerate(export["events"], 1):
    event, proof = entry["event"], [b64decode(one) for one in entry["proof"]]
    if event["id"] != f"{export['stream']}/{version}" or event["streamversion"] != version:
        sys.exit(f"{export['stream']}/{version} is missing: {event['id']} is in its place")
    if not 0 <= entry["leaf_index"] < int(size):
        sys.exit(f"{event['id']} is outside of the tree")
    if root_from(leaf_hash(event), entry["leaf_index"], int(size), proof) != b64decode(root):
        sys.exit(f"{event['id']} is not in the signed tree as it is here")
sys.stdout.write(f"{export['stream']}: {version} events, all in the signed tree of {size} events\n")
