"""List the labels of sets with many, as public code that reads the sets spells them."""


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


FITZPATRICK17K = lines("""
    acanthosis nigricans
    acne
    acne vulgaris
    acquired autoimmune bullous diseaseherpes gestationis
    acrodermatitis enteropathica
    actinic keratosis
    allergic contact dermatitis
    aplasia cutis
    basal cell carcinoma
    basal cell carcinoma morpheiform
    becker nevus
    behcets disease
    calcinosis cutis
    cheilitis
    congenital nevus
    dariers disease
    dermatofibroma
    dermatomyositis
    disseminated actinic porokeratosis
    drug eruption
    drug induced pigmentary changes
    dyshidrotic eczema
    eczema
    ehlers danlos syndrome
    epidermal nevus
    epidermolysis bullosa
    erythema annulare centrifigum
    erythema elevatum diutinum
    erythema multiforme
    erythema nodosum
    factitial dermatitis
    fixed eruptions
    folliculitis
    fordyce spots
    granuloma annulare
    granuloma pyogenic
    hailey hailey disease
    halo nevus
    hidradenitis
    ichthyosis vulgaris
    incontinentia pigmenti
    juvenile xanthogranuloma
    kaposi sarcoma
    keloid
    keratosis pilaris
    langerhans cell histiocytosis
    lentigo maligna
    lichen amyloidosis
    lichen planus
    lichen simplex
    livedo reticularis
    lupus erythematosus
    lupus subacute
    lyme disease
    lymphangioma
    malignant melanoma
    melanoma
    milia
    mucinosis
    mucous cyst
    mycosis fungoides
    myiasis
    naevus comedonicus
    necrobiosis lipoidica
    nematode infection
    neurodermatitis
    neurofibromatosis
    neurotic excoriations
    neutrophilic dermatoses
    nevocytic nevus
    nevus sebaceous of jadassohn
    papilomatosis confluentes and reticulate
    paronychia
    pediculosis lids
    perioral dermatitis
    photodermatoses
    pilar cyst
    pilomatricoma
    pityriasis lichenoides chronica
    pityriasis rosea
    pityriasis rubra pilaris
    porokeratosis actinic
    porokeratosis of mibelli
    porphyria
    port wine stain
    prurigo nodularis
    psoriasis
    pustular psoriasis
    pyogenic granuloma
    rhinophyma
    rosacea
    sarcoidosis
    scabies
    scleroderma
    scleromyxedema
    seborrheic dermatitis
    seborrheic keratosis
    solid cystic basal cell carcinoma
    squamous cell carcinoma
    stasis edema
    stevens johnson syndrome
    striae
    sun damaged skin
    superficial spreading melanoma ssm
    syringoma
    telangiectases
    tick bite
    tuberous sclerosis
    tungiasis
    urticaria
    urticaria pigmentosa
    vitiligo
    xanthomas
    xeroderma pigmentosum
""")

DDI = lines("""
    melanoma-in-situ
    mycosis-fungoides
    squamous-cell-carcinoma-in-situ
    basal-cell-carcinoma
    squamous-cell-carcinoma
    melanoma-acral-lentiginous
    basal-cell-carcinoma-superficial
    squamous-cell-carcinoma-keratoacanthoma
    subcutaneous-t-cell-lymphoma
    melanocytic-nevi
    seborrheic-keratosis-irritated
    focal-acral-hyperkeratosis
    hyperpigmentation
    lipoma
    foreign-body-granuloma
    blue-nevus
    verruca-vulgaris
    acrochordon
    wart
    epidermal-nevus
    abrasions-ulcerations-and-physical-injuries
    basal-cell-carcinoma-nodular
    epidermal-cyst
    acquired-digital-fibrokeratoma
    seborrheic-keratosis
    trichilemmoma
    pyogenic-granuloma
    neurofibroma
    syringocystadenoma-papilliferum
    nevus-lipomatosus-superficialis
    benign-keratosis
    inverted-follicular-keratosis
    onychomycosis
    dermatofibroma
    trichofolliculoma
    lymphocytic-infiltrations
    prurigo-nodularis
    kaposi-sarcoma
    scar
    eccrine-poroma
    angioleiomyoma
    keloid
    hematoma
    metastatic-carcinoma
    melanoma
    angioma
    folliculitis
    atypical-spindle-cell-nevus-of-reed
    xanthogranuloma
    eczema-spongiotic-dermatitis
    arteriovenous-hemangioma
    acne-cystic
    verruciform-xanthoma
    molluscum-contagiosum
    condyloma-accuminatum
    morphea
    neuroma
    dysplastic-nevus
    nodular-melanoma-(nm)
    actinic-keratosis
    pigmented-spindle-cell-nevus-of-reed
    dermatomyositis
    glomangioma
    cellular-neurothekeoma
    fibrous-papule
    graft-vs-host-disease
    lichenoid-keratosis
    reactive-lymphoid-hyperplasia
    coccidioidomycosis
    leukemia-cutis
    sebaceous-carcinoma
    chondroid-syringoma
    tinea-pedis
    solar-lentigo
    clear-cell-acanthoma
    abscess
    blastic-plasmacytoid-dendritic-cell-neoplasm
    acral-melanotic-macule
""")

SD198 = lines("""
    Acne_Keloidalis_Nuchae
    Acne_Vulgaris
    Acrokeratosis_Verruciformis
    Actinic_solar_Damage(Actinic_Cheilitis)
    Actinic_solar_Damage(Actinic_Keratosis)
    Actinic_solar_Damage(Cutis_Rhomboidalis_Nuchae)
    Actinic_solar_Damage(Pigmentation)
    Actinic_solar_Damage(Solar_Elastosis)
    Actinic_solar_Damage(Solar_Purpura)
    Actinic_solar_Damage(Telangiectasia)
    Acute_Eczema
    Allergic_Contact_Dermatitis
    Alopecia_Areata
    Androgenetic_Alopecia
    Angioma
    Angular_Cheilitis
    Aphthous_Ulcer
    Apocrine_Hydrocystoma
    Arsenical_Keratosis
    Balanitis_Xerotica_Obliterans
    Basal_Cell_Carcinoma
    Beau's_Lines
    Becker's_Nevus
    Behcet's_Syndrome
    Benign_Keratosis
    Blue_Nevus
    Bowen's_Disease
    Bowenoid_Papulosis
    Cafe_Au_Lait_Macule
    Callus
    Candidiasis
    Cellulitis
    Chalazion
    Clubbing_of_Fingers
    Compound_Nevus
    Congenital_Nevus
    Crowe's_Sign
    Cutanea_Larva_Migrans
    Cutaneous_Horn
    Cutaneous_T-Cell_Lymphoma
    Cutis_Marmorata
    Darier-White_Disease
    Dermatofibroma
    Dermatosis_Papulosa_Nigra
    Desquamation
    Digital_Fibroma
    Dilated_Pore_of_Winer
    Discoid_Lupus_Erythematosus
    Disseminated_Actinic_Porokeratosis
    Drug_Eruption
    Dry_Skin_Eczema
    Dyshidrosiform_Eczema
    Dysplastic_Nevus
    Eccrine_Poroma
    Eczema
    Epidermal_Nevus
    Epidermoid_Cyst
    Epithelioma_Adenoides_Cysticum
    Erythema_Ab_Igne
    Erythema_Annulare_Centrifigum
    Erythema_Craquele
    Erythema_Multiforme
    Exfoliative_Erythroderma
    Factitial_Dermatitis
    Favre_Racouchot
    Fibroma
    Fibroma_Molle
    Fixed_Drug_Eruption
    Follicular_Mucinosis
    Follicular_Retention_Cyst
    Fordyce_Spots
    Frictional_Lichenoid_Dermatitis
    Ganglion
    Geographic_Tongue
    Granulation_Tissue
    Granuloma_Annulare
    Green_Nail
    Guttate_Psoriasis
    Hailey_Hailey_Disease
    Half_and_Half_Nail
    Halo_Nevus
    Herpes_Simplex_Virus
    Herpes_Zoster
    Hidradenitis_Suppurativa
    Histiocytosis_X
    Hyperkeratosis_Palmaris_Et_Plantaris
    Hypertrichosis
    Ichthyosis
    Impetigo
    Infantile_Atopic_Dermatitis
    Inverse_Psoriasis
    Junction_Nevus
    Keloid
    Keratoacanthoma
    Keratolysis_Exfoliativa_of_Wende
    Keratosis_Pilaris
    Kerion
    Koilonychia
    Kyrle's_Disease
    Leiomyoma
    Lentigo_Maligna_Melanoma
    Leukocytoclastic_Vasculitis
    Leukonychia
    Lichen_Planus
    Lichen_Sclerosis_Et_Atrophicus
    Lichen_Simplex_Chronicus
    Lichen_Spinulosis
    Linear_Epidermal_Nevus
    Lipoma
    Livedo_Reticularis
    Lymphangioma_Circumscriptum
    Lymphocytic_Infiltrate_of_Jessner
    Lymphomatoid_Papulosis
    Mal_Perforans
    Malignant_Melanoma
    Median_Nail_Dystrophy
    Melasma
    Metastatic_Carcinoma
    Milia
    Molluscum_Contagiosum
    Morphea
    Mucha_Habermann_Disease
    Mucous_Membrane_Psoriasis
    Myxoid_Cyst
    Nail_Dystrophy
    Nail_Nevus
    Nail_Psoriasis
    Nail_Ridging
    Neurodermatitis
    Neurofibroma
    Neurotic_Excoriations
    Nevus_Comedonicus
    Nevus_Incipiens
    Nevus_Sebaceous_of_Jadassohn
    Nevus_Spilus
    Nummular_Eczema
    Onychogryphosis
    Onycholysis
    Onychomycosis
    Onychoschizia
    Paronychia
    Pearl_Penile_Papules
    Perioral_Dermatitis
    Pincer_Nail_Syndrome
    Pitted_Keratolysis
    Pityriasis_Alba
    Pityriasis_Rosea
    Pityrosporum_Folliculitis
    Poikiloderma_Atrophicans_Vasculare
    Pomade_Acne
    Pseudofolliculitis_Barbae
    Pseudorhinophyma
    Psoriasis
    Pustular_Psoriasis
    Pyoderma_Gangrenosum
    Pyogenic_Granuloma
    Racquet_Nail
    Radiodermatitis
    Rhinophyma
    Rosacea
    Scalp_Psoriasis
    Scar
    Scarring_Alopecia
    Schamberg's_Disease
    Sebaceous_Gland_Hyperplasia
    Seborrheic_Dermatitis
    Seborrheic_Keratosis
    Skin_Tag
    Solar_Lentigo
    Stasis_Dermatitis
    Stasis_Edema
    Stasis_Ulcer
    Steroid_Acne
    Steroid_Striae
    Steroid_Use_abusemisuse_Dermatitis
    Stomatitis
    Strawberry_Hemangioma
    Striae
    Subungual_Hematoma
    Syringoma
    Terry's_Nails
    Tinea_Corporis
    Tinea_Cruris
    Tinea_Faciale
    Tinea_Manus
    Tinea_Pedis
    Tinea_Versicolor
    Toe_Deformity
    Trichilemmal_Cyst
    Trichofolliculoma
    Trichostasis_Spinulosa
    Ulcer
    Urticaria
    Varicella
    Verruca_Vulgaris
    Vitiligo
    Wound_Infection
    Xerosis
""")

DERMNET = lines("""
    Acne and Rosacea Photos
    Actinic Keratosis Basal Cell Carcinoma and other Malignant Lesions
    Atopic Dermatitis Photos
    Bullous Disease Photos
    Cellulitis Impetigo and other Bacterial Infections
    Eczema Photos
    Exanthems and Drug Eruptions
    Hair Loss Photos Alopecia and other Hair Diseases
    Herpes HPV and other STDs Photos
    Light Diseases and Disorders of Pigmentation
    Lupus and other Connective Tissue diseases
    Melanoma Skin Cancer Nevi and Moles
    Nail Fungus and other Nail Disease
    Poison Ivy Photos and other Contact Dermatitis
    Psoriasis pictures Lichen Planus and related diseases
    Scabies Lyme Disease and other Infestations and Bites
    Seborrheic Keratoses and other Benign Tumors
    Systemic Disease
    Tinea Ringworm Candidiasis and other Fungal Infections
    Urticaria Hives
    Vascular Tumors
    Vasculitis Photos
    Warts Molluscum and other Viral Infections
""")

DERM7PT = lines("""
    basal cell carcinoma
    blue nevus
    clark nevus
    combined nevus
    congenital nevus
    dermal nevus
    dermatofibroma
    lentigo
    melanoma
    melanoma (in situ)
    melanoma (less than 0.76 mm)
    melanoma (0.76 to 1.5 mm)
    melanoma (more than 1.5 mm)
    melanoma metastasis
    melanosis
    miscellaneous
    recurrent nevus
    reed or spitz nevus
    seborrheic keratosis
    vascular lesion
""")

SCIN = lines("""
    Eczema
    Allergic Contact Dermatitis
    Insect Bite
    Urticaria
    Psoriasis
    Folliculitis
    Irritant Contact Dermatitis
    Tinea
    Herpes Zoster
    Drug Rash
    Herpes Simplex
    Acne
    Pigmented purpuric eruption
    Impetigo
    Acute dermatitis, NOS
    CD - Contact dermatitis
    Contact dermatitis, NOS
    Chronic dermatitis, NOS
    Acute and chronic dermatitis
    Lichen planus/lichenoid eruption
    Viral Exanthem
    Pityriasis rosea
    Lichen Simplex Chronicus
    Keratosis pilaris
    Tinea Versicolor
    Leukocytoclastic Vasculitis
    Stasis Dermatitis
    Scabies
    Seborrheic Dermatitis
    Granuloma annulare
    Prurigo nodularis
    Hypersensitivity
    Photodermatitis
    Cellulitis
    Molluscum Contagiosum
    Erythema multiforme
    Cutaneous lupus
    Cutaneous sarcoidosis
    Rosacea
    SK/ISK
    Verruca vulgaris
    Actinic Keratosis
    Basal Cell Carcinoma
    Melanoma
    Melanocytic Nevus
    SCC/SCCIS
    Abscess
    Post-Inflammatory hyperpigmentation
    Pityriasis lichenoides
    Candidal intertrigo
    Onychomycosis
    Vitiligo
""")
