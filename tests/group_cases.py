"""One small graph per way axes pass through operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import group_cases_images as images
import group_cases_moves as moves
import group_cases_products as products
import group_cases_states as states
from group_case import Case

CASES: Mapping[str, Callable[[], Case]] = {
    function.__name__: function
    for function in (
        products.gemm, products.fused_gemm, images.fused, moves.halves, moves.halves_by_number,
        moves.short_bounds, moves.computed_of_constants,
        products.sigmoid_between_matmuls, products.sigmoid_without_bias,
        products.sigmoid_before_gemm, products.weight_on_the_left, products.vector,
        products.many_matrices, products.einsum, products.moved_weights, products.split_weight,
        products.constant_nodes, products.shared_weight, products.shared_bias, products.quantised,
        images.conv_norm, images.sigmoid_before_conv, images.sigmoid_before_border,
        images.depthwise, images.depthwise_twice_as_many, images.grouped,
        images.grouped_at_the_end, images.transposed, images.residual, images.joined, images.gate,
        images.attention_over_places, images.slopes, images.grid, images.resized_to_another,
        images.resized_by_size, images.blocks_of_places, moves.flattened, moves.reshaped,
        moves.reshaped_by_sizes, moves.shape_of_itself, moves.squeezed, moves.old_squeezed,
        moves.gated_linear, moves.gated_by_slices, moves.picked, moves.shuffled,
        moves.shuffled_inside, moves.embedded, moves.repeated, states.attention,
        states.attention_operator, states.attention_operator_by_heads, states.microsoft_attention,
        states.multi_head_attention,
        states.computed_attention, states.lstm, states.gru, states.rnn, states.lstm_with_states,
    )
}  # fmt: skip
