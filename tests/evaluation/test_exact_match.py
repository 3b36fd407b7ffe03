from nemo_sdg.evaluation.exact_match import exact_match


def test_share():
    assert exact_match([("1", "1"), ("2", "1"), ("x\n3", "3"), ("4", "4 ")]) == {"exact_match": 0.75, "n": 4}
    assert exact_match([]) == {"exact_match": None, "n": 0}
