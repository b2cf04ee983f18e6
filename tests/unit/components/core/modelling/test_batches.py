"""Rows of like lengths in a batch, batches in random order."""

from types import SimpleNamespace

import pytest

from bloomery.components.core.modelling.batches import grouped_by_length


def orders(lengths, batch_size, epoch, seed=17, accumulation=1):
    trainer = grouped_by_length(SimpleNamespace, lengths, seed)()
    trainer.args = SimpleNamespace(train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(epoch)
    return list(sampler), list(sampler)


LENGTHS = [index * 7 % 100 + 1 for index in range(83)]


@pytest.mark.parametrize("rows", [83, 80, 8, 9, 3, 1])
def test_every_row_comes_once_and_the_longest_in_the_first_batch(rows):
    order, again = orders(LENGTHS[:rows], 8, epoch=0)
    assert sorted(order) == list(range(rows)) and order == again
    assert max(LENGTHS[:rows]) in [LENGTHS[row] for row in order[:8]]


def test_a_batch_holds_rows_of_like_lengths_and_batches_do_not_fall_in_length():
    order, _ = orders(LENGTHS, 8, epoch=0)
    batches = [[LENGTHS[row] for row in order[at : at + 8]] for at in range(0, 80, 8)]
    # Two megabatches of 16 rows and so on: each sorted, so a batch spans half of what one drawn at random does.
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 60
    means = [sum(batch) / 8 for batch in batches[1:]]
    assert means != sorted(means, reverse=True)


def test_an_epoch_has_its_own_order_whatever_was_before():
    first, second = orders(LENGTHS, 8, epoch=0)[0], orders(LENGTHS, 8, epoch=1)[0]
    assert first != second and orders(LENGTHS, 8, epoch=1)[0] == second
    assert orders(LENGTHS, 8, epoch=0, seed=18)[0] != first
