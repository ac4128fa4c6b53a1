"""Each oddity that the core copes with for everyone has a test, and the page has a line for it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from gateway.cli.quirks import page
from gateway.quirks.everywhere import EVERYWHERE, Known
from tests.quirks.proofs import check_proof

TESTS = Path(__file__).parents[1]

LEGACY = "sessions/test_legacy_servers.py"
SESSIONS = "hub/test_sessions.py"
REPLIES = "scan/test_replies.py"
REQUESTS = "scan/test_requests.py"
MATRIX = "sessions/test_matrix.py"
OLD = "sessions/test_old_clients.py"
LADDER = "upstream/test_ladder.py"
OFFERS = "protocol/test_offers.py"
EVERY = "test_every_client_before_every_old_server"

PROVED_BY = {
    "Q-S3": (
        "sessions/test_repairs.py",
        "test_q_s3_bitmaps_are_listed_though_the_server_forgets_them",
    ),
    "Q-S4": (REPLIES, "test_extents_are_mended"),
    "Q-S7": (LEGACY, "test_q_s7_an_info_that_asks_for_nothing_is_answered"),
    "Q-S8": (LEGACY, EVERY),
    "Q-S9": ("interop/seen.py", "test_q_s9_the_tail_of_an_odd_image_is_there"),
    "Q-S10": (REPLIES, "test_extents_end_with_the_export"),
    "Q-S11": (LADDER, "test_every_server_is_served_on_the_highest_rung_that_it_bears"),
    "Q-S12": (LEGACY, EVERY),
    "Q-S13": (REQUESTS, "test_read_and_write_over_the_maximum_payload_are_cut"),
    "Q-S14": (SESSIONS, "test_disc_is_obeyed_after_what_is_under_way"),
    "Q-S15": (SESSIONS, "test_no_cut_of_the_upstream_hangs_or_deceives_a_client"),
    "Q-S16": (REQUESTS, "test_flags_that_mean_nothing_are_stripped"),
    "Q-S18": (OFFERS, "test_offered_flags"),
    "Q-S19": (LEGACY, "test_q_s19_a_name_that_is_too_long_there_is_refused_and_the_client_stays"),
    "Q-S20": ("protocol/test_client.py", "test_no_zeroes_is_always_taken"),
    "Q-S21": ("protocol/test_client.py", "test_transcript"),
    "Q-S22": (REQUESTS, "test_local_answers"),
    "Q-S23": (LEGACY, EVERY),
    "Q-S30": (LEGACY, "test_q_s30_a_server_that_hung_up_on_a_slow_client_is_dialled_anew"),
    "Q-S32": (MATRIX, "test_status_payload_is_told_in_info_and_where_contexts_are"),
    "Q-C1": (MATRIX, "test_every_client_is_served_by_every_upstream"),
    "Q-C3": ("wire/test_messages.py", "test_error_text_is_cut_between_characters"),
    "Q-C5": (REPLIES, "test_req_one_through_the_scanner"),
    "Q-C6": (REQUESTS, "test_block_status_without_contexts"),
    "Q-C8": ("sessions/test_read_only.py", "test_a_bitmap_that_may_move_is_hidden_on_request"),
    "Q-C10": (OFFERS, "test_usable_size"),
    "Q-C13": (OLD, "test_an_oldstyle_client_is_greeted_with_its_export_and_served"),
    "Q-C17": ("interop/test_info.py", "test_nbdinfo_list"),
    "Q-N1": (LEGACY, EVERY),
    "Q-N3": (REPLIES, "test_simple_error_to_read_over_structured"),
    "Q-N5": (LEGACY, EVERY),
    "Q-N12": (SESSIONS, "test_a_lying_upstream_costs_its_own_client_alone"),
    "Q-N13": (OFFERS, "test_normal_error"),
    "Q-N19": ("protocol/test_client.py", "test_transcript"),
    "Q-N21": (LEGACY, "test_q_n21_size_0_of_an_info_is_not_believed"),
    "Q-L1": (OLD, "test_nbd_client_of_2014_sees_a_writable_device"),
    "Q-L3": ("interop/test_translate.py", "test_requests_of_512_bytes_before_blocks_of_4096"),
    "Q-L8": (LEGACY, "test_q_l8_a_trim_of_almost_4_gib_goes_in_pieces"),
    "Q-K7": (LEGACY, "test_q_k7_a_second_selection_is_made_on_another_connection"),
    "Q-K8": ("interop/test_cases.py", "test_invalid_requests_get_the_errno_of_the_protocol"),
    "Q-K9": (LADDER, "test_a_list_is_asked_for_once_by_all_who_want_it_together"),
    "Q-K10": (REQUESTS, "test_local_answers"),
    "Q-K11": (REQUESTS, "test_long_block_status_is_shortened"),
    "Q-B2": (SESSIONS, "test_nonsense_is_hung_up_on_at_once"),
    "Q-B3": ("protocol/test_server.py", "test_transcript"),
}


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))


@pytest.mark.parametrize("known", EVERYWHERE, ids=lambda known: known.number)
def test_there_is_a_test(known: Known) -> None:
    path, name = PROVED_BY[known.number]
    assert name in functions_of(path)


def test_nothing_is_proved_that_is_not_claimed() -> None:
    numbers = [known.number for known in EVERYWHERE]
    assert list(PROVED_BY) == numbers


@pytest.mark.parametrize("known", EVERYWHERE, ids=lambda known: known.number)
def test_it_is_on_the_page(known: Known) -> None:
    line = f"| {known.number} | {known.peer} | {known.does} | {known.here} | {known.proof} |"
    assert line in page()


@pytest.mark.parametrize("known", EVERYWHERE, ids=lambda known: known.number)
def test_it_says_how_it_is_known(known: Known) -> None:
    check_proof(known.proof)
