"""Lines of a terminal break between words, never inside a number."""

from sysout_jax.reports.terminal import fit, text_table


def test_a_line_breaks_around_numbers_and_formulas():
    for formula in ("τ = 1000", "4 × 512", "W_down[507, 1229]", "layer 12", "12 %", "1,217,876"):
        for pad in range(12, 32):
            text = "x" * pad + " is " + formula + " and more words after it"
            lines = [" ".join(line.split()) for line in fit(text, 36).split("\n")]
            assert any(formula in line for line in lines), (formula, lines)
            assert " ".join(lines) == text


def test_a_cell_is_not_cut_inside_a_number():
    table = text_table(("a", "b"), [("name", "-1,217,876 to 5,315-9")], most=(4, 8))
    assert "-1,217,876" in table and "5,315-9" in table


def test_lines_that_fit_are_left_alone():
    assert fit("  a = 1,\n b", 20) == "  a = 1,\n b"
