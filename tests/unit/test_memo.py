"""What is remembered of things that never change."""

from medmesh.memo import by_identity


def test_each_thing_is_asked_once_and_equal_ones_are_two() -> None:
    asked: list[list[int]] = []

    @by_identity(2)
    def total(numbers: list[int]) -> int:
        asked.append(numbers)
        return sum(numbers)

    one, other = [1, 2], [1, 2]
    assert [total(one), total(other), total(one), total(other)] == [3, 3, 3, 3]
    assert len(asked) == 2
    total([3])  # a third pushes the oldest out, which is asked again
    assert total(one) == 3
    assert len(asked) == 4
