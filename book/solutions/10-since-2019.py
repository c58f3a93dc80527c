"""Solutions to the exercises on what came since 2019; chapters take their stubs from here."""


# %% 10.1
def my_infonce(s, temperature):
    """InfoNCE of a matrix of similarities, near pairs on the diagonal."""
    # solution
    s = s / temperature
    return (torch.logsumexp(s, dim=1) - s.diagonal()).mean()
    # end


# %% 10.2
def coldest(s):
    """Temperature times InfoNCE, as the temperature goes to 0."""
    # solution
    # It is the triplet loss without a margin, with the hardest negative of the row.
    return (s.max(dim=1).values - s.diagonal()).mean()
    # end


# %% 10.3
def adopt(path, slide_id, folder):
    """Rewrite a file of the other tool in the common layout."""
    # solution
    with h5py.File(path) as file:
        features, position = file["embeddings"][:].T, file["position"][:]
    about = {"arch": "dialect", "input_px": 224}
    write_descriptors(folder, slide_id, features, position[:, ::-1], about)
    # end


# %% 10.4
def leaks(tiles, protocol):
    """The faults of a protocol."""
    # solution
    who = {name: tiles.iloc[protocol[name]] for name in ("train", "test", "chosen_on")}
    test = set(who["test"]["patient_id"])
    faults = set()
    if test & set(who["train"]["patient_id"]):
        faults.add("shared patients")
    if test & set(who["chosen_on"]["patient_id"]):
        faults.add("tuned on test")
    slides = who["test"].groupby("patient_id")["slide_id"].nunique()
    enough = protocol["left_out"] == "patient" or (
        protocol["left_out"] == "slide" and (slides == 1).all()
    )
    return faults if enough else faults | {"own patient found"}
    # end


# %% 10.5
def shorten(features, train):
    """At most 64 numbers a tile, decided by the training rows alone."""
    # solution
    centred = features - features[train].mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(centred[train].T))
    return (centred @ vectors[:, -64:]).astype(np.float32)
    # end


mine = None  # descriptors of the test tiles, from a head on the short features
# solution
few = shorten(data.features, data.train)
head_on_few = replace(data, features=few, encoder={"arch": "short", "input_px": 224})
mine = head_on_few.fit(steps=75).encode(few)[data.test]
# end
