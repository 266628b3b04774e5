"""One tree of diagnoses, and the names under which the public data sets know them.

`malignant` is None for a group of diagnoses and for one that sources disagree about. ICD-11 codes are those of the MMS
linearization, given only where they are certain. Cancers in situ count as malignant.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dermedge_runtime.errors import DataError


@dataclass(frozen=True)
class Diagnosis:
    """A node of the tree; `parent` is the id of the next wider diagnosis, None at the root of a branch."""

    id: str
    name: str
    malignant: bool | None = None
    icd11: str | None = None
    parent: str | None = None


_DIAGNOSES = (
    Diagnosis("melanocytic", "melanocytic lesion"),
    Diagnosis("nv", "melanocytic nevus", False, "2F20.Z", "melanocytic"),
    Diagnosis("dysplastic_nevus", "dysplastic (Clark) nevus", False, "2F20.1", "nv"),
    Diagnosis("congenital_nevus", "congenital melanocytic nevus", False, "2F20.2", "nv"),
    Diagnosis("dermal_nevus", "dermal nevus", False, None, "nv"),
    Diagnosis("blue_nevus", "blue nevus", False, None, "nv"),
    Diagnosis("spitz_nevus", "Spitz or Reed nevus", False, None, "nv"),
    Diagnosis("halo_nevus", "halo nevus", False, None, "nv"),
    Diagnosis("combined_nevus", "combined nevus", False, None, "nv"),
    Diagnosis("recurrent_nevus", "recurrent nevus", False, None, "nv"),
    Diagnosis("lentigo", "lentigo simplex", False, None, "melanocytic"),
    Diagnosis("mel", "melanoma", True, "2C30", "melanocytic"),
    Diagnosis("mel_in_situ", "melanoma in situ", True, "2E63", "mel"),
    Diagnosis("lentigo_maligna", "lentigo maligna", True, "2E63.00", "mel_in_situ"),
    Diagnosis("superficial_spreading_melanoma", "superficial spreading melanoma", True, "2C30.0", "mel"),
    Diagnosis("nodular_melanoma", "nodular melanoma", True, "2C30.1", "mel"),
    Diagnosis("lentigo_maligna_melanoma", "lentigo maligna melanoma", True, "2C30.2", "mel"),
    Diagnosis("acral_lentiginous_melanoma", "acral lentiginous melanoma", True, "2C30.3", "mel"),
    Diagnosis("melanoma_metastasis", "metastasis of a melanoma", True, None, "mel"),
    Diagnosis("keratinocytic", "keratinocytic lesion"),
    Diagnosis("bcc", "basal cell carcinoma", True, "2C32", "keratinocytic"),
    Diagnosis("scc", "squamous cell carcinoma", True, "2C31", "keratinocytic"),
    Diagnosis("keratoacanthoma", "keratoacanthoma", None, None, "keratinocytic"),
    # One class in HAM10000, counted as malignant by some and as benign by others.
    Diagnosis("akiec", "actinic keratosis or Bowen's disease", None, None, "keratinocytic"),
    Diagnosis("ak", "actinic keratosis", False, "EK90.0", "akiec"),
    Diagnosis("bowen", "Bowen's disease (squamous cell carcinoma in situ)", True, None, "akiec"),
    Diagnosis("actinic_cheilitis", "actinic cheilitis", False, None, "ak"),
    Diagnosis("bkl", "benign keratosis-like lesion", False, None, "keratinocytic"),
    Diagnosis("sk", "seborrheic keratosis", False, "2F21.0", "bkl"),
    Diagnosis("solar_lentigo", "solar lentigo", False, None, "bkl"),
    Diagnosis("lplk", "lichen planus-like keratosis", False, None, "bkl"),
    Diagnosis("porokeratosis", "porokeratosis", False, None, "keratinocytic"),
    Diagnosis("clear_cell_acanthoma", "clear cell acanthoma", False, None, "keratinocytic"),
    Diagnosis("epidermal_nevus", "epidermal nevus", False, None, "keratinocytic"),
    Diagnosis("vasc", "benign vascular lesion", False),
    Diagnosis("hemangioma", "hemangioma", False, None, "vasc"),
    Diagnosis("cherry_angioma", "cherry angioma", False, None, "hemangioma"),
    Diagnosis("angiokeratoma", "angiokeratoma", False, None, "vasc"),
    Diagnosis("pyogenic_granuloma", "pyogenic granuloma", False, None, "vasc"),
    Diagnosis("skin_hemorrhage", "hemorrhage into the skin", False, None, "vasc"),
    Diagnosis("port_wine_stain", "port-wine stain", False, None, "vasc"),
    Diagnosis("lymphangioma", "lymphangioma", False, None, "vasc"),
    Diagnosis("vascular_malignant", "malignant vascular tumour", True),
    Diagnosis("kaposi_sarcoma", "Kaposi sarcoma", True, "2B57", "vascular_malignant"),
    Diagnosis("angiosarcoma", "angiosarcoma of the skin", True, None, "vascular_malignant"),
    Diagnosis("fibrous", "fibrous or soft-tissue lesion"),
    Diagnosis("df", "dermatofibroma", False, "2F23.0", "fibrous"),
    Diagnosis("dfsp", "dermatofibrosarcoma protuberans", True, None, "fibrous"),
    Diagnosis("keloid", "keloid", False, None, "fibrous"),
    Diagnosis("scar", "scar", False, None, "fibrous"),
    Diagnosis("acrochordon", "skin tag", False, None, "fibrous"),
    Diagnosis("fibrous_papule", "fibrous papule", False, None, "fibrous"),
    Diagnosis("neurofibroma", "neurofibroma", False, None, "fibrous"),
    Diagnosis("lipoma", "lipoma", False, None, "fibrous"),
    Diagnosis("adnexal", "adnexal lesion or cyst"),
    Diagnosis("epidermoid_cyst", "epidermoid cyst", False, None, "adnexal"),
    Diagnosis("sebaceous_hyperplasia", "sebaceous hyperplasia", False, None, "adnexal"),
    Diagnosis("sebaceous_carcinoma", "sebaceous carcinoma", True, None, "adnexal"),
    Diagnosis("nevus_sebaceous", "nevus sebaceous", False, None, "adnexal"),
    Diagnosis("syringoma", "syringoma", False, None, "adnexal"),
    Diagnosis("trichoepithelioma", "trichoepithelioma", False, None, "adnexal"),
    Diagnosis("pilomatricoma", "pilomatricoma", False, None, "adnexal"),
    Diagnosis("haematologic", "lymphoma, neuroendocrine or histiocytic lesion"),
    Diagnosis("mycosis_fungoides", "mycosis fungoides", True, "2B01", "haematologic"),
    Diagnosis("merkel_cell_carcinoma", "Merkel cell carcinoma", True, "2C34", "haematologic"),
    Diagnosis("mastocytosis", "cutaneous mastocytosis", None, None, "haematologic"),
    Diagnosis("juvenile_xanthogranuloma", "juvenile xanthogranuloma", False, None, "haematologic"),
    Diagnosis("metastasis", "metastasis to the skin", True),
    Diagnosis("inflammatory", "inflammatory disease", False),
    Diagnosis("psoriasis", "psoriasis", False, "EA90", "inflammatory"),
    Diagnosis("eczema", "eczema or dermatitis", False, None, "inflammatory"),
    Diagnosis("atopic_dermatitis", "atopic dermatitis", False, "EA80", "eczema"),
    Diagnosis("seborrheic_dermatitis", "seborrheic dermatitis", False, "EA81", "eczema"),
    Diagnosis("allergic_contact_dermatitis", "allergic contact dermatitis", False, "EK00", "eczema"),
    Diagnosis("irritant_contact_dermatitis", "irritant contact dermatitis", False, "EK02", "eczema"),
    Diagnosis("lichen_planus", "lichen planus", False, "EA91", "inflammatory"),
    Diagnosis("pityriasis_rosea", "pityriasis rosea", False, "EA10", "inflammatory"),
    Diagnosis("prurigo_nodularis", "prurigo nodularis", False, None, "inflammatory"),
    Diagnosis("urticaria", "urticaria", False, None, "inflammatory"),
    Diagnosis("drug_eruption", "drug eruption", False, None, "inflammatory"),
    Diagnosis("granuloma_annulare", "granuloma annulare", False, None, "inflammatory"),
    Diagnosis("sarcoidosis", "sarcoidosis of the skin", False, None, "inflammatory"),
    Diagnosis("lupus", "cutaneous lupus erythematosus", False, None, "inflammatory"),
    Diagnosis("bullous_pemphigoid", "bullous pemphigoid", False, None, "inflammatory"),
    Diagnosis("acne", "acne", False, "ED80", "inflammatory"),
    Diagnosis("rosacea", "rosacea", False, "ED90.0", "inflammatory"),
    Diagnosis("hidradenitis_suppurativa", "hidradenitis suppurativa", False, "ED92.0", "inflammatory"),
    Diagnosis("infectious", "infection or infestation", False),
    Diagnosis("wart", "viral wart", False, "1E80", "infectious"),
    Diagnosis("molluscum", "molluscum contagiosum", False, "1E76", "infectious"),
    Diagnosis("herpes_simplex", "herpes simplex", False, None, "infectious"),
    Diagnosis("zoster", "herpes zoster", False, "1E91", "infectious"),
    Diagnosis("tinea", "dermatophytosis (tinea)", False, "1F28", "infectious"),
    Diagnosis("impetigo", "impetigo", False, "1B72", "infectious"),
    Diagnosis("folliculitis", "folliculitis", False, None, "infectious"),
    Diagnosis("scabies", "scabies", False, "1G04", "infectious"),
    Diagnosis("pigmentary", "disorder of pigmentation", False),
    Diagnosis("vitiligo", "vitiligo", False, "ED63.0", "pigmentary"),
    Diagnosis("melasma", "melasma", False, None, "pigmentary"),
    Diagnosis("melanosis", "melanosis", False, None, "pigmentary"),
    Diagnosis("cafe_au_lait", "café-au-lait macule", False, None, "pigmentary"),
    Diagnosis("normal_skin", "skin without a lesion", False),
    Diagnosis("other", "none of the other diagnoses"),
)

TAXONOMY: Mapping[str, Diagnosis] = MappingProxyType({diagnosis.id: diagnosis for diagnosis in _DIAGNOSES})

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "nevus": "nv",
        "naevus": "nv",
        "nev": "nv",
        "mole": "nv",
        "melanocytic nevi": "nv",
        "clark nevus": "dysplastic_nevus",
        "atypical nevus": "dysplastic_nevus",
        "spitz nevus": "spitz_nevus",
        "reed nevus": "spitz_nevus",
        "reed or spitz nevus": "spitz_nevus",
        "malignant melanoma": "mel",
        "bowen's disease": "bowen",
        "bowens disease": "bowen",
        "bod": "bowen",
        "scc in situ": "bowen",
        "squamous cell carcinoma in situ": "bowen",
        "actinic keratoses": "ak",
        "solar keratosis": "ak",
        "ack": "ak",
        "actinic keratoses and intraepithelial carcinoma": "akiec",
        "actinic keratosis / bowen's disease": "akiec",
        "sek": "sk",
        "seborrhoeic keratosis": "sk",
        "benign keratosis": "bkl",
        "benign keratosis-like lesions": "bkl",
        "pigmented benign keratosis": "bkl",
        "lichenoid keratosis": "lplk",
        "lentigo nos": "lentigo",
        "vascular lesion": "vasc",
        "vascular lesions": "vasc",
        "haemangioma": "hemangioma",
        "angioma": "hemangioma",
        "skin tag": "acrochordon",
        "verruca": "wart",
        "lichen planus like keratosis": "lplk",
        "atopic eczema": "atopic_dermatitis",
        "dermatitis": "eczema",
        "unk": "other",
    }
)
"""Other spellings, whichever set they come from; case, `_`, `-` and runs of blanks do not matter."""

SOURCE_ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # Tschandl et al., Sci Data 5:180161 (2018).
        "ham10000": {
            "akiec": "akiec",
            "bcc": "bcc",
            "bkl": "bkl",
            "df": "df",
            "mel": "mel",
            "nv": "nv",
            "vasc": "vasc",
        },
        # Codella et al., arXiv:1710.05006: seborrheic keratosis only, not the wider bkl.
        "isic2017": {"melanoma": "mel", "seborrheic_keratosis": "sk", "nevus": "nv"},
        # Codella et al., arXiv:1902.03368: HAM10000's classes.
        "isic2018": {
            "MEL": "mel",
            "NV": "nv",
            "BCC": "bcc",
            "AKIEC": "akiec",
            "BKL": "bkl",
            "DF": "df",
            "VASC": "vasc",
        },
        # HAM10000's 327 akiec were divided here: 867 AK less BCN20000's 737 (Combalia et al., arXiv:1908.02288) are
        # 130, 628 SCC less its 431 are 197, together 327. So AK is actinic keratosis only, SCC holds Bowen's disease.
        "isic2019": {
            "MEL": "mel",
            "NV": "nv",
            "BCC": "bcc",
            "AK": "ak",
            "BKL": "bkl",
            "DF": "df",
            "VASC": "vasc",
            "SCC": "scc",
            "UNK": "other",
        },
        # Pacheco et al., Data in Brief 32:106221 (2020): SCC holds Bowen's disease, ACK does not.
        "pad_ufes_20": {"ACK": "ak", "BCC": "bcc", "MEL": "mel", "NEV": "nv", "SCC": "scc", "SEK": "sk"},
    }
)
"""What a label means in one public set; asked before `ALIASES`."""


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())


_KNOWN: Mapping[str, str] = {
    **{_key(d.name): d.id for d in _DIAGNOSES},
    **{_key(alias): target for alias, target in ALIASES.items()},
    **{_key(d.id): d.id for d in _DIAGNOSES},
}
_KNOWN_OF: Mapping[str, Mapping[str, str]] = {
    source: {_key(alias): target for alias, target in aliases.items()} for source, aliases in SOURCE_ALIASES.items()
}


def resolve(name: str, source: str | None = None) -> Diagnosis:
    """The diagnosis that a label stands for: an id, a name or an alias; case and separators do not matter.

    Args:
        name: the label.
        source: the public set it comes from (a key of `SOURCE_ALIASES`), whose own meaning of a label comes first; any
            other is read by the common names.

    Raises:
        DataError: for a label that the taxonomy does not know.
    """
    key = _key(name)
    found = _KNOWN_OF.get(source or "", {}).get(key) or _KNOWN.get(key)
    if found is not None:
        return TAXONOMY[found]
    close = difflib.get_close_matches(key, _KNOWN, n=3, cutoff=0.6)
    meant = list(dict.fromkeys(_KNOWN[match] for match in close))
    hint = f"did you mean {' or '.join(repr(m) for m in meant)}? If not, use" if meant else "use"
    raise DataError(
        f"Label {name!r} is not in the taxonomy: {hint} an id of dermedge.data.TAXONOMY, a wider one such as 'other', "
        "or leave the cell empty."
    )


def lineage(diagnosis: str) -> Iterator[str]:
    """The ids from a diagnosis up to the root of its branch, itself first."""
    step: str | None = resolve(diagnosis).id
    while step is not None:
        yield step
        step = TAXONOMY[step].parent


def project(diagnosis: str, labels: Collection[str]) -> str | None:
    """The narrowest of `labels` that covers a diagnosis (`sk` is a `bkl`), or None where none does."""
    return next((step for step in lineage(diagnosis) if step in labels), None)
