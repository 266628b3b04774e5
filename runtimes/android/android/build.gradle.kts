plugins {
    alias(libs.plugins.android.library)
}

android {
    namespace = "dermedge.android"
    compileSdk = 36

    defaultConfig {
        minSdk = 28
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
}

dependencies {
    api(project(":dermedge-core"))
}
