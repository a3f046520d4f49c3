"""What figures are written as."""

import re

from vision_reference.analysis import drawing


def forty_dots():
    with drawing.style():
        figure = drawing.new_figure(2, 2)
        axes = figure.subplots()
        axes.plot(range(40), range(40), "o", color="#0072B2", label="dots")
        axes.legend()
    return drawing.as_svg(figure)


def test_an_svg_says_once_what_its_markers_look_like_and_keeps_every_place():
    svg = forty_dots()
    assert len(re.findall("<use ", svg)) >= 41
    assert len(re.findall('<use [^>]*style="fill: #0072b2', svg)) <= 1  # the legend's
    assert re.search(r'<g clip-path="[^"]*" style="fill: #0072b2[^"]*">\s*<use [^>]*x=', svg)
    assert ">dots</text>" in svg
    assert forty_dots() == svg  # the same figure is the same text
    different = '<g clip-path="url(#a)">\n<use x="1" style="fill: #000"/>\n<use x="2" style="fill: #fff"/>\n</g>'
    assert drawing._said_once(different) == different
