"""Tables count each position of each expert, pair and token."""

import torch

from engine.execution.experts.tables import NUM_TOP_TOKENS, ExpertTables, RoutedRows

CPU = torch.device("cpu")


def rows(token_ids: list[int], expert_ids: list[list[list[int]]]) -> RoutedRows:
    return RoutedRows(0.0, torch.tensor(token_ids, dtype=torch.int32), torch.tensor(expert_ids, dtype=torch.int16))


def test_padding_counts_for_no_expert_and_pairs_are_symmetric() -> None:
    tables = ExpertTables(1, 3, 10, CPU)
    tables.add(rows([4, 4, 5], [[[0, 2], [2, 0], [1, -1]]]))
    [layer] = tables.layers()
    assert layer.tokens == [2, 1, 2] == tables.tokens()[0].tolist()
    assert layer.pairs == [[0, 0, 2], [0, 0, 0], [2, 0, 0]]
    assert layer.top_tokens == [[(4, 2)], [(5, 1)], [(4, 2)]]


def test_top_tokens_are_the_most_frequent_with_ties_to_the_lower_id() -> None:
    tables = ExpertTables(1, 1, 30, CPU)
    tables.add(rows([*range(30), 29, 28], [[[0]] * 32]))
    [top] = tables.layers()[0].top_tokens
    assert top == [(28, 2), (29, 2), *((i, 1) for i in range(NUM_TOP_TOKENS - 2))]


def test_a_part_of_the_vocabulary_maps_back_to_token_ids() -> None:
    tables = ExpertTables(1, 1, 2, CPU)
    tables.add(rows([0, 1, 1], [[[0]] * 3]))
    assert tables.layers([17, 900])[0].top_tokens == [[(900, 2), (17, 1)]]
