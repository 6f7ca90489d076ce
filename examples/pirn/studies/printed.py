"""The numbers that the PIRN paper prints, to stand beside ours, and where to beware of them.

**Table 8 has eight names above seven pairs of numbers.** The last pair, under "PIRN (Ours)", averages .890 and .937,
with .819 for fork_crimp_terminal and .739 for lego_propeller: what the text gives as D3M's ("D3M (AUROC_I 0.890)",
"0.978 vs. 0.819", "1.000 vs. 0.739"). It stands here as D3M's. PIRN's own column is missing in print; the text gives
its averages, .873 and .961, and the two categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Printed", "printed"]

_MVTEC, _EYECANDIES, _D3 = "MVTec 3D-AD", "Eyecandies", "Real-IAD D3"
_MISPRINT = (
    "Table 8 prints D3M's numbers under PIRN's name, and not PIRN's; of PIRN only what the text says is given here. "
    "Its averages of AST (.693 and .650) are not those of its categories (.763 and .690)."
)
_MEANS_11 = (
    "Some means that Table 11 prints are not those of its categories: image AUROC of BTF (.873 by its categories) and "
    "Shape-Guided (.950), AUPRO of BTF (.945) and CFM (.965)."
)
_ONE_NUMBER = (
    "L = 2 in Table 6, ViT-B/14 in Table 10 and ten shots in Table 1 are one setting, printed as .924, .923 and .922."
)


class Printed(NamedTuple):
    """One method's numbers in one place of the paper.

    Attributes:
        table: of the paper.
        dataset: "MVTec 3D-AD", "Eyecandies" or "Real-IAD D3".
        shots: "5", "10", "50" or "all".
        method: as printed.
        category: "mean", or its name.
        metrics: "image_auroc", "pixel_auroc", "aupro", "f1_max", "gflops", "latency_ms" (RTX 4090): those printed.
        note: why to beware, or "".
    """

    table: int
    dataset: str
    shots: str
    method: str
    category: str
    metrics: dict[str, float]
    note: str = ""


def printed(table: int) -> list[Printed]:
    """Gives all numbers of one of the paper's tables, 1 to 11; none for another."""
    if table == 1:
        return list(_table_1())
    if table == 8:
        return list(_table_8())
    if table == 11:
        return list(_table_11())
    return list(_simple(table))


_THREE = ("image_auroc", "pixel_auroc", "aupro")
_FOUR = (*_THREE, "f1_max")

# shots, method; image AUROC, pixel AUROC and AUPRO on MVTec 3D-AD, then on Eyecandies; "-" where none is printed
_TABLE_1 = """
5   | BTF        | .671 .980 .920 .652 .815 .738
5   | AST        | .680 .950 .903 .633 .741 .691
5   | M3DM       | .822 .984 .937 .764 .871 .807
5   | CFM        | .811 .986 .949 .795 .879 .801
5   | 3D-ADNAS   | .826 - - .775 .875 -
5   | INP-Former | .851 .988 .957 .859 .946 .862
5   | Ours       | .890 .990 .960 .895 .955 .887
10  | BTF        | .695 .983 .928 .685 .834 .806
10  | AST        | .689 .946 .835 .671 .767 .624
10  | M3DM       | .845 .986 .943 .824 .890 .812
10  | CFM        | .845 .987 .954 .838 .903 .825
10  | 3D-ADNAS   | .848 - - .807 .869 -
10  | INP-Former | .885 .989 .960 .872 .947 .870
10  | Ours       | .922 .991 .966 .912 .969 .896
50  | BTF        | .806 .989 .947 .721 .856 .824
50  | AST        | .794 .974 .929 .739 .862 .715
50  | M3DM       | .907 .989 .955 .836 .933 .846
50  | CFM        | .906 .991 .965 .852 .926 .851
50  | 3D-ADNAS   | .890 - - .868 .912 -
50  | INP-Former | .921 .991 .965 .902 .967 .892
50  | Ours       | .945 .993 .970 .924 .975 .908
all | BTF        | .865 .992 .959 .740 .883 .845
all | AST        | .937 .976 .944 .780 .902 .744
all | M3DM       | .945 .992 .964 .882 .977 .887
all | CFM        | .954 .993 .971 .881 .974 .887
all | 3D-ADNAS   | .951 - - .946 .970 -
all | INP-Former | .952 .994 .971 .934 .981 .918
all | Ours       | .963 .994 .973 .948 .983 .923
"""

# table: metrics; then shots, method and numbers, all on MVTec 3D-AD
_SIMPLE: dict[int, tuple[tuple[str, ...], str]] = {
    2: (
        _THREE,
        """
10 | BPA -, APR -, MNC - | .828 .976 .952
10 | BPA -, APR +, MNC + | .883 .990 .956
10 | BPA +, APR -, MNC + | .916 .990 .961
10 | BPA +, APR +, MNC - | .867 .988 .947
10 | BPA +, APR +, MNC + | .922 .991 .966
""",
    ),
    3: (
        _FOUR,
        """
5   | RGB-only              | .794 .966 .890 .910
5   | Surface Normals-only  | .854 .972 .912 .932
5   | RGB + Surface Normals | .890 .990 .960 .940
10  | RGB-only              | .827 .968 .901 .921
10  | Surface Normals-only  | .879 .974 .920 .937
10  | RGB + Surface Normals | .922 .991 .966 .951
all | RGB-only              | .874 .977 .917 .929
all | Surface Normals-only  | .937 .977 .928 .946
all | RGB + Surface Normals | .963 .994 .973 .962
""",
    ),
    4: (
        ("image_auroc", "gflops", "latency_ms"),
        """
10 | M3DM | .845 263.27 21.61
10 | CFM  | .845 552.53 60.57
10 | FIND | .921 728.46 76.09
10 | Ours | .922 103.36 17.49
""",
    ),
    5: (
        _FOUR,
        """
all | K = 5   | .954 .993 .969 .957
all | K = 10  | .963 .994 .973 .962
all | K = 50  | .940 .991 .966 .952
all | K = 100 | .901 .984 .950 .947
""",
    ),
    6: (
        _THREE,
        """
10 | L = 1 | .921 .993 .967
10 | L = 2 | .924 .994 .968
10 | L = 4 | .913 .992 .964
10 | L = 8 | .869 .985 .949
""",
    ),
    7: (
        _THREE,
        """
10 | w/o APR module             | .916 .990 .961
10 | Global Averaging           | .915 .989 .960
10 | Top-k Averaging            | .921 .991 .964
10 | Balanced Optimal Transport | .922 .991 .966
""",
    ),
    9: (
        _THREE,
        """
10 | Softmax Attention          | .832 .967 .929
10 | Linear Attention           | .845 .968 .931
10 | Sigmoid Attention          | .878 .976 .954
10 | Balanced Optimal Transport | .922 .991 .966
""",
    ),
    10: (
        _THREE,
        """
10 | DINOv1 ViT-B/8  | .892 .974 .946
10 | DINOv2 ViT-B/14 | .923 .993 .968
10 | DINOv2 ViT-L/14 | .928 .994 .970
""",
    ),
}
_SIMPLE_NOTES = {6: _ONE_NUMBER, 9: "Table 9 names no number of shots; its last row is that of ten.", 10: _ONE_NUMBER}

# category; image and pixel AUROC of each method in order
_TABLE_8_METHODS = ("CFlow", "SimpleNet", "PointMAE", "AST", "PointMAE + PatchCore", "M3DM", "D3M")
_TABLE_8 = """
audio_jack_socket         | .943 .944 .973 .926 .763 .655 .860 .590 .926 .673 .981 .699 .983 .757
common_mode_filter        | .271 .847 .717 .822 .725 .687 .899 .802 .523 .922 .580 .934 .618 .947
connector_housing_female  | .839 .921 .795 .891 .958 .428 .914 .716 .870 .919 .920 .979 .931 .951
crimp_s_t_cable_mount_box | .180 .442 .372 .745 .291 .363 .485 .589 .713 .931 .749 .933 .811 .969
dc_power_connector        | .661 .726 .661 .725 .849 .507 .995 .770 .720 .921 .715 .950 .922 .947
ethernet_connector        | .967 .853 .981 .866 1.000 .656 1.000 .906 .947 .956 .983 .978 .996 .970
ferrite_bead              | .529 .914 .408 .806 .634 .717 .894 .817 .913 .932 .965 .966 .967 .978
fork_crimp_terminal       | .462 .657 .416 .945 .422 .62 .595 .773 .769 .952 .780 .964 .819 .946
fuse_holder               | .853 .861 .564 .957 .309 .605 .597 .754 .736 .927 .770 .948 .866 .915
headphone_jack_socket     | .996 .914 .933 .879 .607 .633 .660 .696 .919 .942 .982 .982 .994 .987
humidity_sensor           | .781 .836 .737 .890 .644 .562 .565 .723 .689 .933 .717 .958 .780 .969
knob_zap                  | .637 .893 .672 .879 .656 .425 .919 .656 .903 .958 .925 .938 .931 .947
lattice_block_plug        | .833 .852 .790 .898 .769 .776 .842 .919 .911 .923 .917 .958 .939 .941
lego_pin_connector_plate  | .828 .877 .857 .947 .361 .482 .847 .629 .662 .759 .681 .734 .891 .889
lego_propeller            | .615 .739 .939 .799 .348 .620 .471 .703 .540 .727 .530 .773 .739 .863
limit_switch              | .846 .950 .823 .790 .763 .545 .804 .641 .822 .938 .863 .966 .925 .984
miniature_lifting_motor   | .402 .799 .402 .760 .717 .435 .766 .467 .948 .962 .975 .991 .823 .961
power_jack                | .354 .664 .176 .489 .433 .687 .564 .645 .981 .923 .996 .902 .973 .947
purple_clip_pot           | .343 .571 .343 .938 .869 .271 .635 .445 .921 .961 .944 .953 .962 .922
telephone_spring_switch   | .575 .910 .627 .916 .771 .413 .951 .551 .827 .944 .856 .936 .934 .957
mean                      | .645 .808 .659 .843 .644 .554 .693 .650 .812 .905 .841 .922 .890 .937
"""
_TABLE_8_TEXT = {
    "mean": {"image_auroc": 0.873, "pixel_auroc": 0.961},
    "fork_crimp_terminal": {"image_auroc": 0.978},
    "lego_propeller": {"image_auroc": 1.0},
}

_TABLE_11_CATEGORIES = ("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire")
_TABLE_11 = {
    "image_auroc": """
BTF          | .938 .765 .972 .888 .960 .664 .904 .929 .982 .726 .865
AST          | .983 .873 .976 .971 .932 .885 .974 .981 1.000 .797 .937
M3DM         | .994 .909 .972 .976 .960 .942 .973 .899 .972 .850 .945
CFM          | .994 .888 .984 .993 .980 .888 .941 .943 .980 .953 .954
3D-ADNAS     | .997 1.000 .971 .986 .966 .948 .897 .873 1.000 .867 .951
Shape-Guided | .986 .894 .983 .991 .976 .857 .990 .965 .990 .869 .947
PIRN         | .971 .973 .941 .957 .975 .993 .992 .950 .996 .880 .963
""",
    "aupro": """
BTF          | .976 .969 .979 .973 .933 .888 .896 .912 .950 .971 .959
AST          | .970 .947 .981 .939 .913 .906 .979 .982 .889 .940 .944
M3DM         | .970 .971 .979 .950 .941 .932 .977 .971 .971 .975 .964
CFM          | .979 .972 .982 .945 .950 .968 .980 .943 .950 .981 .971
Shape-Guided | .981 .973 .982 .971 .962 .978 .981 .983 .974 .975 .976
PIRN         | .966 .978 .983 .972 .976 .971 .981 .978 .974 .951 .973
""",
}


def _rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """The words before the numbers, and the numbers, line by line."""
    for line in text.strip().splitlines():
        *words, numbers = (field.strip() for field in line.split("|"))
        yield words, numbers.split()


def _metrics(names: tuple[str, ...], numbers: list[str]) -> dict[str, float]:
    return {name: float(number) for name, number in zip(names, numbers, strict=True) if number != "-"}


def _simple(table: int) -> Iterator[Printed]:
    names, text = _SIMPLE.get(table, ((), ""))
    for (shots, method), numbers in _rows(text):
        note = _SIMPLE_NOTES.get(table, "")
        yield Printed(table, _MVTEC, shots, method, "mean", _metrics(names, numbers), note)


def _table_1() -> Iterator[Printed]:
    for (shots, method), numbers in _rows(_TABLE_1):
        yield Printed(1, _MVTEC, shots, method, "mean", _metrics(_THREE, numbers[:3]))
        yield Printed(1, _EYECANDIES, shots, method, "mean", _metrics(_THREE, numbers[3:]))


def _table_8() -> Iterator[Printed]:
    for (category,), numbers in _rows(_TABLE_8):
        for index, method in enumerate(_TABLE_8_METHODS):
            pair = numbers[2 * index : 2 * index + 2]
            yield Printed(8, _D3, "all", method, category, _metrics(_THREE[:2], pair), _MISPRINT)
    for category, metrics in _TABLE_8_TEXT.items():
        yield Printed(8, _D3, "all", "PIRN", category, metrics, _MISPRINT)


def _table_11() -> Iterator[Printed]:
    for metric, text in _TABLE_11.items():
        for (method,), numbers in _rows(text):
            for category, number in zip((*_TABLE_11_CATEGORIES, "mean"), numbers, strict=True):
                yield Printed(11, _MVTEC, "all", method, category, {metric: float(number)}, _MEANS_11)
