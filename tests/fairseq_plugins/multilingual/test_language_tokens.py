"""Alignment of a student's batch with what an expert expects, worked out by hand and as properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_plugins.multilingual.language_tokens import Batch, LanguageTokens, Layout, realign

PAD, EOS, DE, RU = 1, 2, 90, 91
BILINGUAL = LanguageTokens()
PREFIXES = LanguageTokens(source_prefix=DE, target_prefix=DE)
ENDS = LanguageTokens(source_end=DE, target_start=DE)


def collate(sentences, layout, tokens):
    """Batch of (source words, target words) as fairseq lays it out, one sentence at a time."""
    rows = {"source": [], "decoder_input": [], "target": []}
    for source, target in sentences:
        source_prefix = [] if tokens.source_prefix is None else [tokens.source_prefix]
        target_prefix = [] if tokens.target_prefix is None else [tokens.target_prefix]
        source_end = EOS if tokens.source_end is None else tokens.source_end
        start = EOS if tokens.target_start is None else tokens.target_start
        rows["source"].append([*source_prefix, *source, source_end])
        rows["decoder_input"].append([start, *target_prefix, *target])
        rows["target"].append([*target_prefix, *target, EOS])

    def pad(lists, left):
        width = max(map(len, lists))
        blanks = [[PAD] * (width - len(tokens)) for tokens in lists]
        both = zip(lists, blanks, strict=True)
        return torch.tensor([blank + row if left else row + blank for row, blank in both])

    return Batch(
        pad(rows["source"], layout.left_pad_source),
        pad(rows["decoder_input"], layout.left_pad_target),
        pad(rows["target"], layout.left_pad_target),
    )


def same(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("source", "decoder_input", "target"))


def test_hand_worked_case_language_tokens_on_source_and_target():
    # `__de__ we agree </s>` and `__de__ yes </s>`, padded as fairseq does: source left, target right
    student = Batch(
        source=torch.tensor([[DE, 10, 11, EOS], [PAD, DE, 12, EOS]]),
        decoder_input=torch.tensor([[EOS, DE, 20, 21, 22], [EOS, DE, 23, PAD, PAD]]),
        target=torch.tensor([[DE, 20, 21, 22, EOS], [DE, 23, EOS, PAD, PAD]]),
    )
    expert, spoken, shift = realign(student, Layout(PAD, EOS), PREFIXES, BILINGUAL)
    assert expert.source.tolist() == [[10, 11, EOS], [PAD, 12, EOS]]
    assert expert.decoder_input.tolist() == [[EOS, 20, 21, 22], [EOS, 23, PAD, PAD]]
    assert expert.target.tolist() == [[20, 21, 22, EOS], [23, EOS, PAD, PAD]]
    assert spoken.tolist() == [[True, True, True, True], [True, True, False, False]]
    assert shift == 1
    # both models predict the same word at positions that are matched
    for sentence, column in spoken.nonzero().tolist():
        assert expert.target[sentence, column] == student.target[sentence, column + shift]


def test_hand_worked_case_language_tokens_in_place_of_end_of_sentence():
    student = Batch(
        source=torch.tensor([[10, 11, DE], [PAD, 12, DE]]),
        decoder_input=torch.tensor([[DE, 20, 21], [DE, 22, PAD]]),
        target=torch.tensor([[20, 21, EOS], [22, EOS, PAD]]),
    )
    expert, spoken, shift = realign(student, Layout(PAD, EOS), ENDS, BILINGUAL)
    assert expert.source.tolist() == [[10, 11, EOS], [PAD, 12, EOS]]
    assert expert.decoder_input.tolist() == [[EOS, 20, 21], [EOS, 22, PAD]]
    assert torch.equal(expert.target, student.target)
    assert spoken.tolist() == [[True, True, True], [True, True, False]]
    assert shift == 0


def test_language_token_of_the_teachers_own_is_no_word_to_learn():
    student = collate([([10], [20, 21])], Layout(PAD, EOS), BILINGUAL)
    multilingual, spoken, shift = realign(student, Layout(PAD, EOS), BILINGUAL, PREFIXES)
    assert multilingual.target.tolist() == [[DE, 20, 21, EOS]]
    assert spoken.tolist() == [[False, True, True, True]]
    assert shift == -1


words = st.lists(st.integers(3, 80), max_size=4)
formats = st.builds(LanguageTokens, *(st.sampled_from([None, token]) for token in (DE, RU, DE, RU)))


@settings(max_examples=150, deadline=None)
@given(
    sentences=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    present=formats,
    wanted=formats,
    left_source=st.booleans(),
    left_target=st.booleans(),
)
def test_any_batch_is_turned_into_what_the_other_model_would_have_been_given(
    sentences, present, wanted, left_source, left_target
):
    layout = Layout(PAD, EOS, left_source, left_target)
    student = collate(sentences, layout, present)
    teacher, spoken, shift = realign(student, layout, present, wanted)
    assert same(teacher, collate(sentences, layout, wanted))
    # every word and every end of sentence is matched with itself, and nothing else is
    assert spoken.sum() == sum(len(target) + 1 for _, target in sentences)
    rows, columns = spoken.nonzero(as_tuple=True)
    assert torch.equal(student.target[rows, columns + shift], teacher.target[rows, columns])


def test_picking_all_sentences_copies_nothing():
    batch = collate([([10], [20]), ([11], [21])], Layout(PAD, EOS), BILINGUAL)
    assert batch.pick(torch.arange(2)) is batch
    assert batch.pick(torch.tensor([1])).source.tolist() == [[11, EOS]]


@pytest.mark.parametrize("left", [True, False])
def test_sentence_of_no_words_is_aligned_too(left):
    layout = Layout(PAD, EOS, left, left)
    assert same(
        realign(collate([([], [])], layout, PREFIXES), layout, PREFIXES, BILINGUAL)[0],
        collate([([], [])], layout, BILINGUAL),
    )
