"""Networks on which the chain once failed, shrunk to a few operators by the random-network runs."""

from __future__ import annotations

import pytest
import torch

from secateurs.testing.chain import check_chain, half_kept, random_kept
from secateurs.testing.networks import Program, Step

torch.set_num_threads(1)

pytestmark = pytest.mark.medium

FAILURES = {
    # the ids of a pixel shuffle were taken over sub-pixels, and removed filters were still read
    "pixel_shuffle_of_few_channels": Program(steps=(Step("conv2d", pick=(0, 2)), Step("pixel_shuffle"))),
    # the unit collapsed onto space when the channels behind a pixel shuffle could not go
    "pixel_shuffle_of_channels_that_stay": Program(
        inputs=("volume",),
        steps=(
            Step("flatten_depth", pick=(9,)),
            Step("residual", pick=(8, 7)),
            Step("conv2d", pick=(5, 10, 3, 2, 10, 2)),
            Step("pixel_shuffle"),
            Step("split", pick=(3,)),
        ),
    ),
    # bytes were predicted with a constant that is neither parameter nor buffer
    "constant_index_loses_entries": Program(
        inputs=("vector",), steps=(Step("linear"), Step("reorder_channels", pick=(1,)))
    ),
    # the native try failed on the module's own constant, and the failure escaped
    "constant_index_of_the_input": Program(inputs=("vector",), steps=(Step("reorder_channels", pick=(2,)),)),
    "constant_index_of_an_image": Program(steps=(Step("reorder_channels", pick=(2,)),)),
    "constant_index_of_a_layer": Program(
        inputs=("vector",), steps=(Step("linear"), Step("reorder_channels", pick=(2,)))
    ),
    # initial states of a traced recurrent layer had no data
    "initial_state_of_lstm": Program(inputs=("sequence",), steps=(Step("recurrent", pick=(0,)),)),
    "initial_state_of_gru": Program(inputs=("sequence",), steps=(Step("recurrent", pick=(1,)),)),
    # the graph form lost `num_batches_tracked`, which nothing reads
    "unread_buffer_of_batch_norm": Program(
        inputs=("signal",), steps=(Step("conv1d", pick=(0, 1)), Step("split"), Step("batch_norm"), Step("again"))
    ),
    # a layer whose result nothing reads was not cut, but still ran
    "batch_norm_that_nothing_reads": Program(
        steps=(Step("conv2d"), Step("batch_norm"), Step("channel_scale", on=(1,)), Step("conv2d")), output="raw"
    ),
    "reordering_that_nothing_reads": Program(
        inputs=("vector",),
        steps=(Step("linear"), Step("reorder_channels", pick=(2,)), Step("linear", on=(1,))),
        output="newest",
    ),
    # removing one of two channels of a maximum, and a row of pixels: changes that the result must own up to
    "maximum_over_pairs": Program(steps=(Step("conv2d"), Step("maxout"))),
    # a batch size baked into a branch that nothing reads: at other sizes the original ran by accident
    "batch_size_in_a_branch_that_nothing_reads": Program(
        inputs=("square",),
        steps=(Step("rows_as_batch"), Step("window_attention", pick=(9,)), Step("concat", on=(1, 1))),
        output="newest",
    ),
    "vector_folded_into_space": Program(inputs=("vector",), steps=(Step("linear"), Step("to_pixels"))),
}


@pytest.mark.parametrize("unit", ["heads", "head_dim"])
@pytest.mark.parametrize("name", FAILURES)
def test_shrunk_failure(name, unit):
    for keep in (half_kept, random_kept(0), random_kept(1), random_kept(2), random_kept(6705)):
        model, example_inputs = FAILURES[name].build()
        check_chain(model, example_inputs, keep, unit=unit)
