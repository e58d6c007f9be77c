"""Ordinary English words: what prompts are made of, as text or as the token ids that it has."""

WORDS = tuple(
    """
    able about above across action active after again against age agree air all almost alone along
    already also always among amount ancient and animal another answer any apple area arm army
    around arrive art ask attempt away baby back bad bag ball band bank bar base basic bath be
    bear beat beautiful because become bed before begin behind believe below beside best better
    between beyond big bird bit black blood blue board boat body bone book born both bottle bottom
    box boy branch bread break bridge bright bring brother brown build burn business busy but buy
    call camera can capital captain car card care carry case catch cause cell center century
    certain chair chance change character charge cheap check child choose church circle city claim
    class clean clear climb clock close cloth cloud coast coat cold collect color column come
    common company compare complete condition consider contain continue control cook cool copy corn
    corner correct cost cotton could count country couple course cover create cross crowd culture
    current cut dance danger dark data date daughter day dead deal dear death decide deep degree
    depend describe desert design desk detail develop die difference difficult dinner direct
    discover discuss distance divide doctor dog dollar door double doubt down draw dream dress
    drink drive drop dry during dust duty each ear early earth ease east eat edge effect egg eight
    either electric else empty end enemy energy engine enough enter equal escape even evening event
    ever every exact example except excite exercise expect experience explain eye face fact fair
    fall family famous far farm fast father favor fear feed feel few field fight figure fill film
    final find fine finger finish fire first fish fit five flat floor flow flower fly follow food
    foot force foreign forest forget form forward four free fresh friend front fruit full fun
    future game garden gas gather general gentle get gift girl give glad glass go gold good govern
    grand grass gray great green ground group grow guess guide gun half hand happen happy hard hat
    have head health hear heart heat heavy help here high hill history hit hold hole home hope
    horse hospital hot hotel hour house huge human hundred hurry ice idea image imagine important
    inch include increase indicate industry insect inside instead interest invent iron island item
    job join journey judge jump just keep key kill kind king kitchen knee know lady lake land
    language large last late laugh law lay lead learn least leave left leg length less letter
    level library lie life lift light like line lion lip list listen little live local long look
    lost lot loud love low luck machine main major make man many map mark market master match
    material matter mean measure meat meet member memory metal method middle might mile milk mind
    mine minute mirror miss mix model modern moment money month moon more morning most mother motion
    mount mountain mouth move much music name narrow nation natural nature near necessary neck need
    neighbor never new news next nice night nine noise none noon north nose note nothing notice
    number object ocean offer office often oil old once only open operate opposite orange order
    other our out outside over own oxygen page paint pair paper parent park part party pass past
    path pattern pay peace people perhaps period person phone phrase picture piece place plain
    plan plane planet plant play please plenty point police poor popular position possible pound
    power practice prepare present president press pretty prince print private prize problem
    process produce product promise protect proud prove public pull push put quarter queen question
    quick quiet quite race radio rain raise range rather reach read ready real reason receive
    record red region relate remain remember repeat reply report require rest result return rich
    ride right ring rise river road rock roll roof room root rope rose round row rule run safe
    sail salt same sand save say scale school science score sea search season seat second secret
    section see seed seem select sell send sense sentence separate serious serve set settle seven
    several shadow shape share sharp sheet shell ship shirt shoe shop shore short should shoulder
    shout show side sight sign silent silver similar simple since sing single sister sit six size
    skill skin sky sleep slip slow small smell smile smoke smooth snow social society soft soil
    soldier solution some son song soon sound south space speak special speech speed spend spirit
    spot spread spring square stand star start state station stay steam steel step stick still
    stone stop store storm story straight strange stream street strength string strong student
    study subject success sudden sugar suggest suit summer sun supply support sure surface
    surprise sweet swim symbol system table tail take talk tall taste teach team tell temperature
    ten tennis term test than that theory there thick thin thing think third thought thousand
    three through throw thus tie time tiny tire together tone tool top total touch toward town
    track trade train travel tree triangle trip trouble truck true trust try tube turn twenty two
    type under understand union unit until up usual valley value various vary verb very view
    village visit voice vowel wait walk wall want war warm wash watch water wave way wear weather
    week weight welcome well west wheel when where whether which while white whole why wide wife
    wild will win wind window wing winter wire wish with without woman wonder wood word work world
    worry worth would write wrong yard year yellow yes yet young zero
    """.split()
)
