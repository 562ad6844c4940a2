"""What a file's name says before it is opened: whether it is audio, or what a system left behind."""

import os

_SNDFILE = (
    ".8svx .16svx .aif .aifc .aiff .au .avr .bwf .caf .fap .flac .ircam .mp1 .mp2 .mp3 .mpa .mpga .nist .oga .ogg "
    ".opus .paf .pvf .rf64 .sd2 .sds .sf .snd .sph .svx .voc .w64 .wav .wave .wavex .wv1 .wv2 .wve"
)
_PYAV = (
    ".3g2 .3gp .3gpp .aac .ac3 .adts .amr .ape .asf .avi .awb .dff .dsf .dts .eac3 .ec3 .f4a .f4v .flv .m4a .m4b .m4r "
    ".m4v .mka .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ogx .qcp .ra .rm .shn .spx .tak .tta .weba .webm .wma .wmv .wv"
)
_HEADERLESS = ".al .alaw .g722 .gsm .pcm .raw .ul .ulaw .vox"
_DOUBTFUL = ".htk .iff .mat .mpc .xi"

# Every suffix of the formats that libsndfile reads; what is inside decides, so that a wrong one does no harm
SNDFILE_SUFFIXES = frozenset(_SNDFILE.split())
# Audio, and video with a sound track, that PyAV reads
PYAV_SUFFIXES = frozenset(_PYAV.split())
# Samples alone: no file says at which rate, and in which coding
HEADERLESS_SUFFIXES = frozenset(_HEADERLESS.split())
# Of formats that libsndfile reads too, but mostly of other things: such a file counts where it opens as audio
DOUBTFUL_SUFFIXES = frozenset(_DOUBTFUL.split())

_AUDIO = SNDFILE_SUFFIXES | PYAV_SUFFIXES | HEADERLESS_SUFFIXES
_LEFT_BEHIND = frozenset(("__MACOSX", ".DS_Store", ".AppleDouble", "@eaDir", ".ipynb_checkpoints"))


def suffix_of(name: str) -> str:
    """The last suffix of a file's name, in small letters."""
    return os.path.splitext(name)[1].lower()


def is_audio_name(name: str) -> bool:
    """Whether a file of this name is taken for audio."""
    return suffix_of(name) in _AUDIO


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is some system's own, as are the `._NAME` companions that a Mac writes."""
    return name.startswith("._") or name in _LEFT_BEHIND


def audio_kinds() -> str:
    """What counts as audio, for a message."""
    return "such as .flac .wav .mp3 .opus .m4a; docs/data.md lists them"
