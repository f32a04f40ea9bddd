# SPDX-License-Identifier: Apache-2.0
"""XMP adapted to an enlarged, upright image.

Source: XMP specification, parts 1 and 2 (ISO 16684-1), and of single properties the namespaces named below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
# A panorama's sizes and margins in pixels.
_PANORAMA = "http://ns.google.com/photos/1.0/panorama/"
_DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"
_REGIONS = ("http://www.metadataworkinggroup.com/schemas/regions/", "Regions")
_GAIN_MAP = "http://ns.adobe.com/hdr-gain-map/1.0/"
# Of a motion photo, whose film lies behind the JPEG and is not written.
_CAMERA, OF_A_FILM = "http://ns.google.com/photos/1.0/camera/", ("MotionPhoto", "MicroVideo")
# What tells of other images in the same file, which are not written: a gain map, a depth map, a film.
_OTHER_IMAGES = ("http://ns.google.com/photos/1.0/container/", "Directory")
_STALE = {
    ("http://ns.adobe.com/xap/1.0/", "Thumbnails"),
    (_EXIF, "SubjectArea"),
    (_EXIF, "SubjectLocation"),
    _OTHER_IMAGES,
}


def adapted(packet: bytes, before: tuple[int, int], after: tuple[int, int], *, turned: bool) -> tuple[bytes, list[str]]:
    """A packet for an upright image of `after` (width, height) pixels, which was one of `before`; and what it no longer
    tells, in words. Regions of faces go with an image that was turned, because they lie as it was stored.

    Raises ValueError for what is no XML."""
    try:
        document = minidom.parseString(packet.strip(b"\0 \r\n\t"))
    except (ExpatError, UnicodeError, LookupError) as error:
        raise ValueError(f"is no XML: {error}") from error
    factors = {"Width": after[0] / before[0], "Left": after[0] / before[0]}
    factors |= {"Height": after[1] / before[1], "Top": after[1] / before[1]}
    sizes = {(_TIFF, "Orientation"): 1, (_TIFF, "ImageWidth"): after[0], (_TIFF, "ImageLength"): after[1]}
    sizes |= {(_EXIF, "PixelXDimension"): after[0], (_EXIF, "PixelYDimension"): after[1]}
    lost, changed = set(), False
    for node in list(_properties(document)):
        space, name, value = str(node.namespaceURI), str(node.localName), _value(node)
        kind = next((kind for kind in factors if space == _PANORAMA and name.endswith(f"{kind}Pixels")), None)
        new = sizes.get((space, name))
        if kind and value.isdecimal():
            new = round(int(value) * factors[kind])
        if space == _DIMENSIONS and name in ("w", "h") and _unit(node) == "pixel":
            new = after["wh".index(name)]
        of_film = space == _CAMERA and name.startswith(OF_A_FILM)
        if (space, name) in _STALE or space == _GAIN_MAP or of_film or (turned and (space, name) == _REGIONS):
            lost.add(f"{node.prefix}:{name}")
            _remove(node)
            changed = True
        elif new is not None and value != str(new):
            _set(node, str(new))
            changed = True
    if not changed:
        return packet, []
    # What stands around the root, the packet's wrapper, is among the document's nodes.
    return "".join(node.toxml() for node in document.childNodes).encode(), sorted(lost)


def tells_of_other_images(packet: bytes) -> bool:
    """Whether it is of a file that holds a gain map or other images beside the one."""
    return _GAIN_MAP.encode() in packet or _OTHER_IMAGES[0].encode() in packet


def _properties(node: Any) -> Iterator[Any]:
    """All elements and attributes, those above before those below."""
    for child in node.childNodes:
        if child.nodeType == child.ELEMENT_NODE:
            yield child
            yield from list(child.attributes.values())
            yield from _properties(child)


def _value(node: Any) -> str:
    if node.nodeType == node.ATTRIBUTE_NODE:
        return str(node.value)
    return "".join(child.data for child in node.childNodes if child.nodeType == child.TEXT_NODE).strip()


def _set(node: Any, value: str) -> None:
    if node.nodeType == node.ATTRIBUTE_NODE:
        node.value = value
    else:
        node.childNodes = []
        node.appendChild(node.ownerDocument.createTextNode(value))


def _remove(node: Any) -> None:
    if node.nodeType == node.ATTRIBUTE_NODE:
        node.ownerElement.removeAttributeNode(node)
    elif node.parentNode:
        node.parentNode.removeChild(node)


def _unit(node: Any) -> str:
    """Of a size that is one of a structure's, as attributes or as elements."""
    if node.nodeType == node.ATTRIBUTE_NODE:
        return str(node.ownerElement.getAttributeNS(_DIMENSIONS, "unit"))
    return next((_value(n) for n in node.parentNode.childNodes if n.localName == "unit"), "")
