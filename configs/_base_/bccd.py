# BCCD: 364 photos of blood smears, 640x480, three classes (RBC, WBC, Platelets); 205 train, 87 val
# (not used), 72 test. Below KDTASKS_DATA as bccd/{JPEGImages,Annotations,ImageSets}; or say where:
# --cfg-options data.train.root=… data.test.root=… Reduced to 240x180, so that two CPU cores do;
# COCO's sizes are still measured in the original pixels.
data = dict(
    # mirrored at random
    train=dict(type='kdtasks.detection.data.bccd', train=True, size=(180, 240)),
    test=dict(type='kdtasks.detection.data.bccd', train=False, size=(180, 240)),
    batch_size=8,
    test_batch_size=24,
)
