import pytest

from nemo_sdg.evaluation.exact_match import exact_match, is_right, last_line


@pytest.mark.parametrize(
    "response, answer, right",
    [
        ("42", "42", True),
        ("first 40 + 2\n42\n\n", "42", True),
        ("  42 \t\r\n", "42", True),
        ("42\nor 43", "42", False),
        ("The answer is 42", "42", False),
        ("042", "42", False),
        ("", "42", False),
        ("\n \n", "42", False),
        ("42\n<extra_id_1>User\nand now?", "42", True),
        ("42</s>", "42", True),
    ],
)
def test_the_last_line_decides(response, answer, right):
    assert is_right(response, answer) is right


def test_last_line_of_nothing_is_empty():
    assert last_line("") == ""


def test_share():
    assert exact_match([("1", "1"), ("2", "1"), ("x\n3", "3"), ("4", "4 ")]) == {"exact_match": 0.75, "n": 4}
    assert exact_match([]) == {"exact_match": None, "n": 0}
