"""A Django project in one file: settings, a view and the WSGI application."""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.admin",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for tests",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)


def greet(request):
    return HttpResponse("Hello from Django\n")


urlpatterns = [path("", greet)]
application = get_wsgi_application()
