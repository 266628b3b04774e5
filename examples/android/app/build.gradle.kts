plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "dermedge.example"
    compileSdk = 36

    defaultConfig {
        applicationId = "dermedge.example"
        minSdk = 28
        targetSdk = 36
        versionCode = 1
        versionName = "0.1.0"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    androidResources {
        // The bundle is opened without unpacking it first.
        noCompress += "dermedge"
    }
}

dependencies {
    implementation("dermedge:dermedge-android:0.1.0")
    // The engine of the bundle's format: litert, or onnxruntime.android for android-onnx.
    implementation(libs.litert)
    implementation(libs.activity)
    implementation(libs.camera.camera2)
    implementation(libs.camera.lifecycle)
    implementation(libs.camera.view)
}
